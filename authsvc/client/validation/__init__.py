"""How a token is validated: cache, coalescing, renewal ahead and outages; pure asyncio."""
