"""What a run will take before it is begun: its one program compiled for devices that need not be there."""
