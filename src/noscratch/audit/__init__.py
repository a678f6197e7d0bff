"""The auditor: what somebody who does not believe us runs. Nothing that is published depends on this package."""
