package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// endsInterrupted is standard input from a program that an interrupt ends too.
type endsInterrupted struct {
	io.Reader
	interrupt context.CancelFunc
}

func (e endsInterrupted) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err == io.EOF {
		e.interrupt()
	}
	return n, err
}

// TestPolicyInterrupted checks that an interrupted command reports it, and does
// not end as if its answer were whole.
func TestPolicyInterrupted(t *testing.T) {
	dir := t.TempDir()
	grant := workflowGrant() // once: two of different seconds would end at different times
	write(t, dir+"/grant.yaml", grant)
	if err := recordedLog(dir+"/state", dir+"/grant.yaml", true, time.Now().Add(-time.Hour),
		[]string{"GET https://api.weather.example/v1/forecast/oslo"}); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(dir + "/state/audit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/wider.yaml", strings.Replace(grant, "/v1/forecast/*", "/v1/**", 1))
	for name, test := range map[string]struct {
		args  []string
		start bool // the interrupt is at the start, and not at the end of standard input
	}{
		"prove":  {args: []string{"prove", "--old", dir + "/grant.yaml", "--new", dir + "/grant.yaml"}, start: true},
		"diff":   {args: []string{"diff", dir + "/grant.yaml", dir + "/wider.yaml"}, start: true},
		"replay": {args: []string{"replay", "--config", dir + "/grant.yaml", "-"}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			if test.start {
				interrupt()
			}
			var out bytes.Buffer
			code := execute(ctx, append([]string{"policy"}, test.args...), endsInterrupted{bytes.NewReader(log), interrupt}, &out, &out)
			if code != exitFailure || !strings.Contains(out.String(), "interrupted") || strings.Contains(out.String(), "budget") {
				t.Errorf("ended with %d:\n%s", code, out.String())
			}
		})
	}
}
