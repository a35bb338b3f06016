"""How a tower runs: device, precision, batch size, backend."""
