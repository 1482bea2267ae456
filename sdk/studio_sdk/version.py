"""The SDK's version; the server shows it beside each client."""

VERSION = "0.1.0"
