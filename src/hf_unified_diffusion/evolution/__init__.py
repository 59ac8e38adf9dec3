"""Learning from use: adapters, and which of them a request asks for."""
