"""What MkDocs leaves out of the site: the theme's source maps and its search in languages other than English.

They are two thirds of the theme's bytes, and no page asks for them. The page of a run, of which there may be a
thousand, is cut to what it needs.
"""

import re

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

UNUSED = re.compile(r"\.map$|^assets/javascripts/lunr/")
# Blank lines and indentation between the theme's own tags; what stands in <pre> comes after the article's start.
BLANK = re.compile(r"\n\s+")
# Drawer, search and announcements of the theme, which work by scripts that a run's page does not load.
DEAD = re.compile(
    r'<input class="md-toggle"[^>]*>\n|<label class="md-overlay".*?</label>\n|'
    r'<div data-md-component="announce">.*?</div>\n|<script>__md_scope=.*?</script>\n',
    re.DOTALL,
)
# What nobody links to.
PILCROW = re.compile(r'<a class="headerlink".*?</a>')
RUN, END = "run.html", "</div>\n</div>\n</main>\n</div>\n</body>\n</html>\n"


def on_files(files: Files, **_: object) -> Files:
    return Files([file for file in files if not UNUSED.search(file.src_uri)])


def on_post_page(output: str, page: Page, **_: object) -> str:
    head, start, rest = output.partition("<article")
    body, end, foot = rest.rpartition("</article>")
    head, foot = BLANK.sub("\n", head), BLANK.sub("\n", foot)
    if page.meta.get("template") == RUN:
        head, body, foot = (
            DEAD.sub("", head),
            PILCROW.sub("", body.rstrip()),
            "</div>\n</div>\n</main>\n</div>\n</body>\n</html>\n",
        )
    return head + start + body + end + foot
