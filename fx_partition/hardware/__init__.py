"""What the devices of this machine are; imports no other part of the package."""
