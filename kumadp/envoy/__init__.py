"""Envoy as a child: binary, argv, version, admin client, and the proof that the admin is private."""
