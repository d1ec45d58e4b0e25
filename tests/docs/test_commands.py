"""Every command in the README and the pages parses, and what the pages run on pictures does run."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
from documents import EVERYTHING, PAGES, ROOT, VERBS, check, commands, complete, inline_commands, spans, verb_of
from pictures import make_picture
from PIL import Image
from running import fgssl, make_photos

PARSED = sorted({tuple(words) for text in PAGES.values() for words in commands(text)})
INLINE = sorted({tuple(words) for text in PAGES.values() for words in inline_commands(text) if complete(words)})


def test_the_search_for_commands_finds_them() -> None:
    lines = [
        "A=b fgssl probe x --json   # why",
        "pip install . && fgssl pretrain \\",
        " --lr 1",
        "python -m fgssl embed y",
    ]
    text = "\n".join(["```sh", *lines, "```", "fgssl nothing", "```", "x", "```"])
    assert commands(text) == [["probe", "x", "--json"], ["pretrain", "--lr", "1"], ["embed", "y"]]
    with pytest.raises(Exception, match=r"--jsonn|No such option"):
        check(["probe", "x", "--jsonn"])
    assert inline_commands("`fgssl\nprobe x`, `fgssl VERB`, ``fgssl y``") == [["probe", "x"]]


@pytest.mark.parametrize("words", PARSED, ids=" ".join)
def test_every_command_parses(words: tuple[str, ...]) -> None:
    check([*words])


@pytest.mark.parametrize("words", INLINE, ids=" ".join)
def test_every_command_in_a_sentence_parses(words: tuple[str, ...]) -> None:
    check([*words])


def test_readme_shows_every_verb_at_work() -> None:
    assert {verb_of(words) for words in commands(PAGES["README.md"])} == set(VERBS)


def test_the_readme_has_its_two_commands() -> None:
    found = re.findall(r"^pip install .*$", PAGES["README.md"], re.MULTILINE)
    assert found == ["pip install . && fgssl pretrain", 'pip install -e ".[dev]" && pytest']


def bench_code() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").rglob("*.py")))


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_named_exists(page: str) -> None:
    known = {option for command in VERBS.values() for parameter in command.params for option in parameter.opts}
    known |= {option for command in VERBS.values() for p in command.params for option in p.secondary_opts}
    known |= {
        "--help",
        "--version",
        "--nproc_per_node",
        "--nnodes",
        "--rdzv_backend",
        "--rdzv_endpoint",
        "--install-completion",
        "--show-completion",
        "--logdir",
    }
    known |= set(re.findall(r'"(--[a-z][\w-]*)"', bench_code()))
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "recipes").rglob("*.sh"))
    known |= set(re.findall(r'" !?= (--[a-z][\w-]*) \]', scripts))  # as a shell script asks for its mode
    text = re.sub(r"^#SBATCH.*", "", PAGES[page], flags=re.MULTILINE)
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
    assert named <= known, named - known


def bench_commands() -> list[str]:
    """Commands that run a benchmark, indented or in a sentence."""
    blocks = re.findall(r"^    (python recipes/bench/(?:.*\\\n)*.*)", EVERYTHING, re.MULTILINE)
    return sorted({*blocks, *(span for span in spans(EVERYTHING) if span.startswith("python recipes/bench/"))})


@pytest.mark.parametrize("line", bench_commands())
def test_every_benchmark_named_exists_and_knows_its_options(line: str) -> None:
    words = shlex.split(line.replace("\\\n", " "))
    assert (ROOT / words[1]).is_file()
    for option in [word for word in words[2:] if word.startswith("--")]:
        assert f'"{option}"' in bench_code(), option


# ---- what the pages run on pictures does run

# each command of these pages, in this order, in one folder, as a reader would type them
STORY = (
    "README.md",
    "docs/data.md",
    "docs/search.md",
    "docs/explore.md",
    "docs/classify.md",
    "docs/pictures.md",
    "docs/evaluate.md",
    "docs/compare.md",
)
NETWORK = ("timm:", "cub", "hf-hub:", "dinov2")  # hub data and weights are only parsed
ELSEWHERE = ("runs/demo", "runs/cub", "runs/shop")  # so are runs of the demo, which take minutes, and of data sets
# what makes a command a matter of seconds; the later option wins
SHORTER = {
    "pretrain": ("--backbone", "test_resnet", "--no-pretrained", "--image-size", "64", "--max-steps", "2",
                 "--batch-size", "8", "--workers", "0", "--device", "cpu", "--quiet"),
    "probe sgd": ("--epochs", "1"),
    "sweep": ("--dry-run",),
    "probe fewshot": ("--ways", "2", "--episodes", "5", "--shots", "1"),
}  # fmt: skip


def story() -> list[list[str]]:
    """Each command of the pages once; the demo's run takes minutes and is left out."""
    found = {tuple(words): None for page in STORY for words in commands(PAGES[page])}
    return [
        [*words]
        for words in found
        if words != ("pretrain",) and not any(w.startswith((*NETWORK, *ELSEWHERE)) for w in words)
    ]


def shortened(words: list[str]) -> list[str]:
    more = [options for key, options in SHORTER.items() if set(key.split()) <= set(words)]
    return [*words, *(option for options in more for option in options)]


def make_masks(photos: Path, folder: Path) -> None:
    """For each photograph a mask named as it is: a square in the middle."""
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 30, 30))
    for photo in photos.rglob("*.*"):
        place = (folder / photo.relative_to(photos)).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        mask.save(place)


def test_a_reader_who_types_what_the_pages_say_gets_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("photos", "more-photos", "other-photos", "archive")):
        for split in ("train", "test"):
            make_photos(tmp_path / name / split, 18, classes=3, seed=100 * number + 50 * (split == "test"))
    make_masks(tmp_path / "photos", tmp_path / "masks")
    for number, name in enumerate(("a.jpg", "b.jpg", "img.jpg", "other.jpg")):
        make_picture(number, 60, 50).save(tmp_path / name)
    other = ["pretrain", "--data", "./photos", "--output", "runs/other", "--no-rationale"]
    ran = set()
    monkeypatch.setattr("sys.stdin", io.StringIO("a.jpg\nb.jpg\n"))
    for words in map(shortened, [other, *story()]):
        outcome = fgssl(*words, cwd=tmp_path)
        assert outcome.code == 0, (" ".join(words), outcome.err)
        ran.add(verb_of(words))
    assert ran == set(VERBS) - {"backbones", "reproduce"}
    for left in ("runs/photos/encoder.safetensors", "sheet.png", "maps.png", "features.safetensors"):
        assert (tmp_path / left).is_file(), left
