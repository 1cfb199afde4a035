"""The picture of README.md can be drawn."""

import many_classes


def test_the_picture_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(many_classes, "CLASSES", (2, 20))
    monkeypatch.setattr("sys.argv", ["many_classes.py", "--draws", "1", "--out", str(tmp_path / "new" / "one.png")])
    many_classes.main()
    assert (tmp_path / "new" / "one.png").stat().st_size > 10_000
    few, many = capsys.readouterr().out.splitlines()[:2]
    assert few.startswith("C = 2: ratio 1, block-diagonal 0.500") and many.startswith("C = 20: ratio 0.00")
