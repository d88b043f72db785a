"""What the HTTP servers share: listening, time-outs, guards, and the endpoints for operators."""
