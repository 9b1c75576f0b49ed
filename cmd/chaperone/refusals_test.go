package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
)

// A plugin chooses what it tries and how often: a terminal shows some refusals, and
// how many were left out.
func TestRefusalsPrintedInASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		p := newRefusalPrinter(&out)
		for i := range 100 {
			p.print(authz.Refusal{Reason: authz.NoGrant, URL: fmt.Sprintf("tcp://192.0.2.1:%d", i)})
		}
		if n := strings.Count(out.String(), "refused tcp://"); n != refusalRate {
			t.Errorf("printed %d", n)
		}
		time.Sleep(time.Second)
		p.print(authz.Refusal{Reason: authz.NoGrant, URL: "tcp://192.0.2.2:1"})
		if !strings.Contains(out.String(), "80 more were refused") || !strings.Contains(out.String(), "192.0.2.2:1") {
			t.Errorf("printed\n%s", out.String())
		}
	})
}

// The refused statements of a database have one URL, and each lacks something else.
func TestRefusedStatementsAreEachPrinted(t *testing.T) {
	var out strings.Builder
	p := newRefusalPrinter(&out)
	for _, table := range []string{"customers", "staff", "staff"} {
		p.print(authz.Refusal{Reason: authz.StatementNotGranted, URL: "postgres://db.example:5432/shop", Detail: "may not use table public." + table})
	}
	for _, wait := range []string{"wait 2s", "wait 1s"} {
		p.print(authz.Refusal{Reason: authz.QuotaExceeded, URL: "https://api.example", Detail: wait, Remedy: wait})
	}
	if n := strings.Count(out.String(), "refused "); n != 3 {
		t.Errorf("printed %d refusals, want 3:\n%s", n, out.String())
	}
}
