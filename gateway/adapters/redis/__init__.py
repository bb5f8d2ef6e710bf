"""State in Redis or Valkey; `keys` knows every key name, `client` every error."""
