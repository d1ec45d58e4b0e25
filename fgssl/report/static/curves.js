"use strict";
// Learning curves by Observable Plot: a line a series, dashed levels to read it against, the value under the pointer.
fgssl.each(".curves", (root, panels) => {
  const places = [...root.querySelectorAll(".plot")];

  function drawn(panel, width) {
    const several = new Set(panel.points.map((point) => point.line)).size > 1;
    const steps = new Set(panel.points.map((point) => point.step));
    const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));
    const stroke = several ? "line" : fgssl.ink("--accent");
    return Plot.plot({
      width, height: 220, marginLeft: 50, marginTop: 14, marginRight: 14,
      style: { fontSize: "12px" },
      x: { label: "step", ticks: 5, tickFormat: "~s", ...(steps.size === 1 ? { domain: [0, 2 * [...steps][0]] } : {}) },
      y: { label: null, grid: true, ticks: 5, tickFormat: (v) => String(+v.toPrecision(4)) },
      color: several ? { legend: true, scheme: "tableau10" } : {},
      marks: [
        Plot.ruleY(panel.levels, { y: "value", stroke: "currentColor", strokeDasharray: "4 4", strokeOpacity: 0.7 }),
        Plot.text(panel.levels, { y: "value", text: (d) => `${d.name} ${number(d.value)}`, frameAnchor: "right", dy: -7,
          fill: "currentColor" }),
        Plot.lineY(panel.points, { x: "step", y: "value", stroke, strokeWidth: 2 }),
        steps.size <= 30 ? Plot.dot(panel.points, { x: "step", y: "value", r: 2.5, fill: stroke }) : null,
        Plot.tip(panel.points, Plot.pointerX({ x: "step", y: "value",
          title: (d) => `step ${d.step}\n${d.line ? `${d.line} ` : ""}${number(d.value)}` })),
      ],
    });
  }

  const draw = () => places.forEach((place, n) => place.replaceChildren(drawn(panels[n], Math.max(260, place.clientWidth))));
  let width = 0;
  new ResizeObserver(() => {
    if (root.clientWidth !== width) { width = root.clientWidth; draw(); }
  }).observe(root);
  fgssl.onTheme(draw);
});
