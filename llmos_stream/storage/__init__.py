"""What is kept on disk: files that survive a crash, and payloads too large for memory."""
