"""What tests share: real keys, system packages, small fleets."""
