"use strict";
// Maps over pictures: a slider fades from the picture into each map in turn.
document.querySelectorAll(".maps").forEach((root) => {
  const MOST = 0.72;  // of a map over its picture, which stays visible
  const section = root.closest("section"), all = section.querySelector(".all");

  function show(figure, value) {
    const slider = figure.querySelector("input[type='range']");
    if (!slider) return;
    slider.value = value;
    figure.querySelectorAll("img.cells").forEach((layer, n) => {
      layer.style.opacity = MOST * Math.max(0, 1 - Math.abs(slider.value - (n + 1)));
    });
  }

  const figures = [...root.querySelectorAll("figure")];
  figures.forEach((figure) => {
    figure.querySelector("input[type='range']")?.addEventListener("input", (event) => show(figure, event.target.value));
  });
  const showAll = () => figures.forEach((figure) => show(figure, all.value));
  if (all) {
    all.addEventListener("input", showAll);
    showAll();
  }
  section.querySelector(".windows")?.addEventListener("change", (event) => {
    root.classList.toggle("hidden-windows", !event.target.checked);
  });
});
