// Package pilotrun runs a pilot: it starts `chaperone run` with a Sidecar that observes,
// drives a load, takes samples of the plugin's cgroup and of the sidecar's figures, and
// reads the audit log at the end.
//
// It ends only the process that it started. Everything that a pilot writes is in the folder
// of its [Config], but for the sidecar's entries in the host's registry, which the sidecar
// removes.
package pilotrun
