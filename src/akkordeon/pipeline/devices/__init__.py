"""Gates on devices that compute behind the host."""
