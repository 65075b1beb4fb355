"""How the page looks: colours, style sheet and the small pieces of HTML that Gradio has no component for."""

from collections.abc import Sequence
from html import escape
from typing import Any

CSS = """
.gradio-container { max-width: 1320px !important; margin: 0 auto; }
#head { padding: 0.4rem 0.2rem 0; }
#head h1 { font-size: 1.7rem; font-weight: 700; letter-spacing: -0.02em; margin: 0; }
#head h1 span { color: var(--color-accent); }
#head p { margin: 0.15rem 0 0; color: var(--body-text-color-subdued); }
#presets { gap: 0.5rem; }
#presets button { min-width: 0; }
#estimate, #status { font-variant-numeric: tabular-nums; }
.note { color: var(--body-text-color-subdued); font-size: 0.92rem; line-height: 1.45; }
.note b { color: var(--body-text-color); font-weight: 600; }
.bad { color: var(--error-text-color, #b91c1c); }
.bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); margin-top: 6px; }
.bar div { height: 100%; border-radius: 4px; background: var(--color-accent); transition: width 0.2s ease; }
.note code { overflow-wrap: anywhere; white-space: pre-wrap; font-size: 0.85rem; }
#examples .grid-wrap { padding: 0; }
#examples .grid-container, #gallery .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
#examples img { width: 100%; }
#actions button, #downloads button, #downloads a { min-height: 46px; }
#gallery .grid-wrap { height: auto; min-height: 0; max-height: none; padding-top: 2rem; }
footer .divider { display: none !important; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 0.6rem !important; }
  .gradio-container .wrap, .gradio-container .column, .gradio-container .row > * { min-width: 0 !important; }
  #head h1 { font-size: 1.4rem; }
}
"""

LOGIN_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>ClearSR</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>body{font-family:system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:0}
form{display:grid;gap:.8rem;width:min(20rem,85vw)}input,button{font:inherit;padding:.7rem;border-radius:.5rem;
border:1px solid #8888}button{background:#0f766e;color:#fff;border:0}h1{margin:0}</style></head><body>
<form method="post" action="/login"><h1>ClearSR</h1><label for="token">This server asks for its token.</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button>Enter</button><div role="alert">{note}</div></form></body></html>"""

HEAD = (
    "<h1>Clear<span>SR</span></h1><p>Larger, sharper photographs that stay true to the original. "
    "Everything is computed on this server.</p>"
)


def make_theme() -> Any:
    """Gradio's plain theme in our colours, with the system's fonts: nothing is loaded from elsewhere."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


def note(text: str) -> str:
    """A quiet line; `text` is shown as it is."""
    return f'<div class="note">{escape(text)}</div>'


def warning(text: str) -> str:
    """A line that says what is wrong."""
    return f'<div class="note bad" role="alert">{escape(text)}</div>'


def progress(done: int, steps: int, text: str) -> str:
    """A bar with a line above it."""
    share = 100 * done / steps if steps else 0
    return (
        f'<div class="note" role="status">{escape(text)}</div><div class="bar" role="progressbar" '
        f'aria-valuemin="0" aria-valuemax="{steps}" aria-valuenow="{done}">'
        f'<div style="width:{share:.0f}%"></div></div>'
    )


def summary(what: str, command: str, warnings: Sequence[str] = ()) -> str:
    """What was done, what was lost by it, and the command line that does the same."""
    lost = "".join(f'<span class="bad">{escape(line)}</span><br>' for line in warnings)
    same = f"The same on the command line: <code>{escape(command)}</code>"
    return f'<div class="note"><b>{escape(what)}</b><br>{lost}{same}</div>'
