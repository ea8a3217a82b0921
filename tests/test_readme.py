"""What the README tells people to type works, and what it links to exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_commands_that_claim_to_run_as_they_stand_do(tmp_path: Path) -> None:
    (block,) = re.findall(r"<!-- executed by tests/test_readme.py -->\n```sh\n(.*?)```", README, re.DOTALL)
    for line in block.strip().splitlines():
        program, *arguments = line.split()
        command = [str(Path(sys.executable).parent / program), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=200)
        assert found.returncode == 0, f"{line}\n{found.stdout}{found.stderr}"
        assert found.stdout


@pytest.mark.parametrize("name", [p.name for p in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name if name == "README.md" else ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name} links to {target}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
