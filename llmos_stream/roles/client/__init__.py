"""The client: it takes versions, trains on its own data, and publishes updates."""

from llmos_stream.roles.client.loop import client_id_of, run_client, state_folder
from llmos_stream.roles.client.session import Client, Published
from llmos_stream.roles.client.state import ClientState

__all__ = ["Client", "ClientState", "Published", "client_id_of", "run_client", "state_folder"]
