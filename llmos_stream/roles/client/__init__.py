"""The client: it takes versions, trains on its own data, and publishes updates.

From the outside in: `loop` is the role. `participation` does what the policy decides (`core.client_policy`). `session`
is the connection: it takes versions in and sends updates. `outbox` encodes updates, and `state` keeps what must survive
a crash, in files that `state_files` and `state_vectors` write; `personal` keeps what is not shared of the model.
"""

from llmos_stream.roles.client.identity import client_id_of, state_folder
from llmos_stream.roles.client.loop import run_client
from llmos_stream.roles.client.personal import read_personal
from llmos_stream.roles.client.sending import Published
from llmos_stream.roles.client.session import Client
from llmos_stream.roles.client.state import ClientState

__all__ = ["Client", "ClientState", "Published", "client_id_of", "read_personal", "run_client", "state_folder"]
