//go:build !linux

package reaper

import "context"

// Run returns at once: on this platform nothing is collected.
func (*Reaper) Run(context.Context) error { return nil }
