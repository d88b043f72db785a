import json
from pathlib import Path

from tests.bench.__main__ import main
from tests.bench.bench_fold import CODECS


def test_the_fold_is_measured_beside_its_floor(tmp_path: Path) -> None:
    assert main(["fold", "--numel", "5000", "--repeats", "1", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "fold.json").read_text())
    assert [row["codec"] for row in found["updates"]] == list(CODECS)
    for row in found["updates"]:
        assert row["ratio"] > 1  # of what cannot be undercut
        assert row["ratio_with_digest"] >= row["ratio"]
    assert [row["numel"] for row in found["versions"]] == [5000]
