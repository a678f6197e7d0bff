"""What MkDocs leaves out of the site: the theme's source maps and its search in languages other than English.

They are two thirds of the theme's bytes, and no page asks for them.
"""

import re

from mkdocs.structure.files import Files

UNUSED = re.compile(r"\.map$|^assets/javascripts/lunr/")
# Blank lines and indentation between the theme's own tags; what stands in <pre> comes after the article's start.
BLANK = re.compile(r"\n\s+")


def on_files(files: Files, **_: object) -> Files:
    return Files([file for file in files if not UNUSED.search(file.src_uri)])


def on_post_page(output: str, **_: object) -> str:
    head, start, rest = output.partition("<article")
    body, end, foot = rest.partition("</article>")
    return BLANK.sub("\n", head) + start + body + end + BLANK.sub("\n", foot)
