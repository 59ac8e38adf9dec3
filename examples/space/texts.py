"""Words and colours of the page."""

INTRODUCTION = """# One transformer, one question: *what is the clean sample?*
Text and code are written by diffusion, many tokens at a time, forwards and in the middle. Watch the drafts: <span
class="written">finished</span>, <span class="draft">drafted</span>, <span class="hidden">░░</span> still hidden.
"""

CHECKED, ALONE = "Drafts, checked", "Diffusion alone"
EMPTY = '<div class="paper empty">Here it will be written.</div>'
EXAMPLES = [
    ["The history of the bicycle", "text"],
    ["Once upon a time, in a small house by the sea,", "text"],
    ['def is_even(n):\n    """Whether a number is even."""\n', "code"],
]

TOOLS = """[
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "parameters": {
        "type": "object",
        "properties": {
          "city": {"enum": ["Oslo", "Lima", "Cairo"]},
          "unit": {"enum": ["celsius", "fahrenheit"]}
        },
        "required": ["city", "unit"],
        "additionalProperties": false
      }
    }
  }
]"""

SCHEMA = """{
  "type": "object",
  "properties": {
    "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    "again": {"type": "boolean"}
  },
  "required": ["stars", "again"],
  "additionalProperties": false
}"""

CSS = """
.gradio-container {width: 100%; max-width: 1200px !important; margin: 0 auto !important}
.paper {white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; line-height: 1.6; padding: 1rem 1.2rem;
  min-height: 9rem; border-radius: 12px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-primary)}
.empty {color: var(--body-text-color-subdued)}
.given {color: var(--body-text-color-subdued)}
.written {color: var(--body-text-color); font-weight: 500}
.draft {color: #4f46e5; background: #eef2ff; border-radius: 4px}
.hidden {color: #c7d2fe; letter-spacing: -1px}
.dark .draft {color: #c7d2fe; background: #312e81}
.dark .hidden {color: #4f46e5}
.status {min-height: 1.6rem; color: var(--body-text-color-subdued)}
.notice {padding: .7rem 1rem; border-radius: 10px; background: #fff7ed; border: 1px solid #fed7aa; color: #7c2d12}
.notice .notice {padding: 0; border: 0; background: none}
.dark .notice {background: #431407; border-color: #7c2d12; color: #fed7aa}
.head {flex-wrap: nowrap !important}
.head input[type=number] {width: 3.2rem !important; padding: 0 .3rem !important}
.ends {align-items: flex-end}
footer {display: none !important}
"""
