"""Shell completion: the scripts of three shells, what they are answered, and at what cost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from fgssl.cli import completion

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "zsh", "fish")


def asked(words: str, *, shell: str = "bash", folder: Path | None = None) -> list[str]:
    """What the shell is answered after some words, the last of which is being typed; torch must not be loaded."""
    told = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": words}
    program = """
import sys
from fgssl.cli import main
sys.argv = ["fgssl"]
try:
    main()
finally:
    assert not {"torch", "timm", "datasets"} & set(sys.modules)
"""
    environment = {**os.environ, **told, "_FGSSL_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT)}
    environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=folder)
    assert "AssertionError" not in done.stderr, done.stderr
    return done.stdout.split()


def test_verbs_in_every_shell() -> None:
    assert asked("fgssl retr") == ["retrieve"]
    assert "retrieve" in " ".join(asked("fgssl retr", shell="zsh"))
    assert "retrieve" in " ".join(asked("fgssl retr", shell="fish"))


def test_values_and_runs(tmp_path: Path) -> None:
    assert asked("fgssl retrieve x --pool c") == ["concat", "cls"]
    run = tmp_path / "runs" / "photos"
    run.mkdir(parents=True)
    (run / "encoder.safetensors").touch()
    assert "runs/photos" in asked("fgssl probe runs/p", folder=tmp_path)
    assert "resnet50" in asked("fgssl pretrain --backbone resnet5")


def test_the_names_are_those_that_timm_knows() -> None:
    assert set(completion.backbone_names()) == set(timm.list_models())


def test_lists_with_commas_and_prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = completion.several(("gap", "rationale", "zoom"))
    assert pools("gap,") == ["gap,rationale", "gap,zoom"] and pools("r") == ["rationale"] and pools("gap,g") == []
    assert "timm:resnet18" in completion.checkpoint("timm:resnet1")
    assert completion.objective("moco") == ["mocov2"] and completion.source("cu")[0] == "cub"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "list.txt").touch()
    (tmp_path / ".hidden").touch()
    assert completion.source("") == [*completion.source("")[:-2], "list.txt", "photos/"]
    assert completion.source(f"{tmp_path}/ph") == [f"{tmp_path}/photos/"] and completion.source("nowhere/x") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "_FGSSL_COMPLETE": f"source_{shell}", "PYTHONPATH": str(ROOT)}
    program = "import sys; sys.argv = ['fgssl']; from fgssl.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "_FGSSL_COMPLETE" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes(tmp_path: Path) -> None:
    """The script, sourced, and its function called as bash calls it when Tab is pressed."""
    command = tmp_path / "fgssl"
    command.write_text(f"#!{sys.executable}\nfrom fgssl.cli import main\nmain()\n")
    command.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    lines = f"""
export PATH='{path}' PYTHONPATH='{ROOT}'
eval "$(_FGSSL_COMPLETE=source_bash fgssl)"
COMP_WORDS=(fgssl comp); COMP_CWORD=1
function_name=$(complete -p fgssl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function_name fgssl
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True)
    assert done.stdout.split() == ["compare"], done.stderr
