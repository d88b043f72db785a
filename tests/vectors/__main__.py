"""Write the test vectors into the documentation."""

from tests.docs.pages import DOCS
from tests.vectors.make import write

write(DOCS / "vectors")
