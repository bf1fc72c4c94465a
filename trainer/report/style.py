# SPDX-License-Identifier: Apache-2.0
"""The look of a report, light and dark."""

STYLE = """
:root{--paper:#fbfbfa;--card:#fff;--ink:#1c2026;--soft:#6b7480;--line:#e4e6e9;--tint:#f1f4fa}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--card:#1d2127;--ink:#e8eaed;--soft:#98a1ad;
  --line:#30363e;--tint:#232a36}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",
  sans-serif}
main{max-width:1180px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:28px;margin:0 0 4px;letter-spacing:-.02em}
h2{font-size:19px;margin:44px 0 12px;letter-spacing:-.01em}
p.lead{color:var(--soft);margin:0 0 22px}
.protocol{background:var(--tint);border-left:3px solid #3d6fd9;border-radius:4px;padding:12px 16px;
  margin:18px 0;max-width:900px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 12px;text-align:right;white-space:nowrap}
th{font-weight:600;font-size:12.5px;color:var(--soft);border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
tr+tr td{border-top:1px solid var(--line)}
tr.quiet td{color:var(--soft);font-style:italic}
td.best{font-weight:700}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px;vertical-align:baseline}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:18px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
figcaption{font-size:13.5px;color:var(--soft);margin-bottom:6px;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block}
svg text{font:11.5px system-ui,sans-serif;fill:var(--soft)}
svg text.value{text-anchor:middle;fill:var(--ink)}
svg .grid{stroke:var(--line)}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(480px,100%),1fr));gap:18px}
.panels figcaption{margin:8px 0 0}
.panels b{color:var(--ink);font-weight:600}
.panels img{width:100%;height:auto;border-radius:4px;display:block;background:#fff}
@media(max-width:560px){.panels{grid-template-columns:1fr}}
"""
