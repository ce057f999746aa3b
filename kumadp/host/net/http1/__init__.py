"""HTTP/1.1 as asyncio protocols, for requests that are answered in one piece: server and client, without aiohttp."""
