"""The live page: a federation as it is now, for a person with a browser.

<f>.events, <f>.control, <f>.models -> Board -> view -> Feed -> every open page, as one snapshot and then what changes
"""

from llmos_stream.dashboard.service import LivePage

__all__ = ["LivePage"]
