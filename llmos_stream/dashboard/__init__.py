"""The live page: a federation as it is now, for a person with a browser.

<f>.events, <f>.evaluations, <f>.control, <f>.models -> FederationView -> page_state -> StateStream -> every open page
"""

from llmos_stream.dashboard.service import LivePage

__all__ = ["LivePage"]
