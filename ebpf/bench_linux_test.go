package ebpf

import (
	"testing"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// BenchmarkStart is from nothing to a confined program's end and back.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		c, err := New(Config{StateDir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Attach(Endpoints{}); err != nil {
			b.Fatal(err)
		}
		p, err := c.Start(sandbox.Command{Path: "/bin/true"})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUsage is one sample.
func BenchmarkUsage(b *testing.B) {
	c, err := New(Config{StateDir: b.TempDir(), CountSyscalls: true})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for b.Loop() {
		if _, err := c.Usage(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStartProgram is the start and the end of a program in a confinement that
// stands, seen by the host's view and with one of its own.
func BenchmarkStartProgram(b *testing.B) {
	for _, view := range []bool{false, true} {
		b.Run(map[bool]string{false: "host", true: "own"}[view], func(b *testing.B) {
			c, err := New(Config{Plugin: "bench", StateDir: b.TempDir(), View: view})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if err := c.Attach(Endpoints{}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				p, err := c.Start(sandbox.Command{Path: "/bin/true"})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.Wait(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
