"""The fixed parts of the report: the style sheet, the drawing script and the frame of the page."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "static"
STYLE = (_FOLDER / "report.css").read_text(encoding="utf-8")
SCRIPT = (_FOLDER / "report.js").read_text(encoding="utf-8")


def page(*, title: str, policy: str, body: str, figures: str, scripts: list[str]) -> str:
    """Return the whole document. All arguments are HTML already; `figures` is JSON without `<`."""
    inline = "".join(f"<script>{script}</script>\n" for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script type="application/json" id="figures">{figures}</script>
{inline}</body>
</html>
"""
