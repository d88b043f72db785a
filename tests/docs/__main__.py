"""Write the tables of the documentation anew."""

from tests.docs.made import pages, rewritten

for page in pages():
    page.write_text(rewritten(page))
