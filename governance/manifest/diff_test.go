package manifest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/authz"
)

func TestDiff(t *testing.T) {
	tests := map[string]struct {
		change []string // of the new manifest
		class  Class
		of     string // the permission
		about  string // of one of its changes; "" for no change
	}{
		"the same":             {nil, ClassNone, "", ""},
		"another reason":       {[]string{"Order status for the timeline", "Order status"}, ClassNone, "", ""},
		"another artifact":     {[]string{"9f2c", "9f2d"}, ClassNone, "", ""},
		"required":             {[]string{"    optional: true\n", ""}, ClassNone, "", ""},
		"another host":         {[]string{"[eu1.crm.example]", "[eu1.crm.example, us1.crm.example]"}, ClassNewEgress, "write-crm", "host"},
		"a wildcard":           {[]string{"[eu1.crm.example]", `["*.crm.example"]`, "crm-token\n", "crm-token\n    wildcardCredential: true\n"}, ClassNewEgress, "write-crm", "host"},
		"another port":         {[]string{"ports: [443]", "ports: [443, 8443]"}, ClassNewEgress, "read-orders", "port"},
		"an internal address":  {[]string{"ports: [443]", "ports: [443], addresses: [10.0.0.0/8]"}, ClassNewEgress, "read-orders", "address"},
		"a socket":             {[]string{"sockets: [/run/app/app.sock]", "sockets: [/run/app/app.sock, /run/other.sock]"}, ClassNewEgress, "", "socket"},
		"a method":             {[]string{"methods: [GET]", "methods: [GET, HEAD]"}, ClassWider, "read-orders", "method"},
		"a deeper path":        {[]string{"/v1/orders/*", "/v1/orders/**"}, ClassWider, "read-orders", "path"},
		"weaker TLS":           {[]string{`ports: [443], tls: {min: "1.3"}`, "ports: [443]"}, ClassWider, "read-orders", "terms"},
		"a longer timeout":     {[]string{"timeout: 10s", "timeout: 60s"}, ClassWider, "read-orders", "terms"},
		"no timeout":           {[]string{"    timeout: 10s\n", ""}, ClassWider, "read-orders", "terms"},
		"a higher limit":       {[]string{"  limits: {requests: 100/1m}\n  sockets", "  limits: {requests: 1000/1m}\n  sockets"}, ClassWider, "", "limit"},
		"no limit of a rule":   {[]string{"    limits: {requests: 50/1m}\n    timeout", "    timeout"}, ClassWider, "read-orders", "limit"},
		"another class":        {[]string{"classes: [confidential]", "classes: [confidential, restricted]"}, ClassNewData, "read-orders", "data"},
		"a longer retention":   {[]string{"retention: 30d", "retention: 60d"}, ClassWider, "write-crm", "retention"},
		"no retention stated":  {[]string{", retention: 30d", ""}, ClassWider, "write-crm", "retention"},
		"a credential":         {[]string{"    paths: [\"/v1/orders/*\"]", "    paths: [\"/v1/orders/*\"]\n    credential: crm-token"}, ClassNewCredential, "read-orders", "credential"},
		"credential's kind":    {[]string{"kind: bearer", "kind: basic"}, ClassNewCredential, "write-crm", "credential"},
		"credential's name":    {[]string{"credential: crm-token", "credential: crm-admin", "name: crm-token", "name: crm-admin"}, ClassNewCredential, "write-crm", "credential"},
		"credential's purpose": {[]string{"Writes as the service user", "Writes"}, ClassNone, "", ""},
		"plain http beside":    {[]string{"  credentials:\n", "  - id: plain\n    reason: r\n    to: {scheme: http, hosts: [eu1.crm.example]}\n    methods: [GET]\n    paths: [/]\n  credentials:\n"}, ClassNewEgress, "plain", "port"},
		"a new permission":     {[]string{"  credentials:\n", "  - id: more\n    reason: r\n    to: {hosts: [more.example]}\n    methods: [GET]\n    paths: [/]\n  credentials:\n"}, ClassNewEgress, "more", "host"},
		"an optional one too":  {[]string{"  credentials:\n", "  - id: more\n    optional: true\n    reason: r\n    to: {hosts: [more.example]}\n    methods: [GET]\n    paths: [/]\n  credentials:\n"}, ClassNewEgress, "more", "host"},
		"a renamed permission": {[]string{"    limits: {requests: 50/1m}\n    timeout: 10s\n", "    timeout: 10s\n", "id: read-orders", "id: orders"}, ClassWider, "", ""},
		"a narrower path":      {[]string{"/api/v3/timeline/**", "/api/v3/timeline/entries"}, ClassNarrower, "write-crm", "path"},
		"a narrower retention": {[]string{"retention: 30d", "retention: 10d"}, ClassNarrower, "write-crm", "retention"},
		"fewer classes":        {[]string{"classes: [confidential], ", ""}, ClassNarrower, "read-orders", "data"},
		"a lower limit":        {[]string{"  limits: {requests: 100/1m}\n  sockets", "  limits: {requests: 10/1m}\n  sockets"}, ClassNarrower, "", "limit"},
		"no socket":            {[]string{"  sockets: [/run/app/app.sock]\n", ""}, ClassNarrower, "", "socket"},
		"regions":              {[]string{"classes: [internal], ", "classes: [internal], regions: [eu], "}, ClassNarrower, "write-crm", "region"},
		"more and less":        {[]string{"methods: [POST]", "methods: [GET]"}, ClassWider, "write-crm", "method"},
	}
	before := manifestOf(t)
	for name, test := range tests {
		d, err := Diff(t.Context(), before, manifestOf(t, append([]string{"version: 2.4.1", "version: 3.0.0"}, test.change...)...), testNow)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d.Class != test.class || d.Demanded != test.class.Demands() || d.Refused != "" || !d.Complete {
			t.Errorf("%s: class is %s, want %s: %+v", name, d.Class, test.class, d)
			continue
		}
		if test.about == "" {
			continue
		}
		i := slices.IndexFunc(d.Permissions, func(p PermissionDelta) bool { return p.Permission == test.of })
		if i < 0 || !slices.ContainsFunc(d.Permissions[i].Changes, func(c Change) bool { return c.About == test.about && c.Class == test.class && c.Position.Line > 1 }) {
			t.Errorf("%s: no change of %s about %s: %+v", name, test.of, test.about, d.Permissions)
		}
	}
}

// Data that move with a name or a host are new where they arrive.
func TestDiffMovedData(t *testing.T) {
	for name, test := range map[string]struct {
		change []string
		want   Class
	}{
		"a name moves to another host": {[]string{
			"id: read-orders", "id: kept", "id: write-crm", "id: read-orders", "classes: [internal]", "classes: [confidential]",
		}, ClassNewData},
		"another name, the same data": {[]string{"id: write-crm", "id: crm"}, ClassNone},
		"another name, more data":     {[]string{"id: write-crm", "id: crm", "classes: [internal]", "classes: [restricted]"}, ClassNewData},
		"another name, longer":        {[]string{"id: write-crm", "id: crm", "retention: 30d", "retention: 60d"}, ClassWider},
	} {
		after := manifestOf(t, append([]string{"version: 2.4.1", "version: 3.0.0"}, test.change...)...)
		before := manifestOf(t)
		for i := range after.Spec.Permissions { // limits by rule are of the name
			after.Spec.Permissions[i].Limits, before.Spec.Permissions[i].Limits = authz.Limits{}, authz.Limits{}
		}
		if d, err := Diff(t.Context(), before, after, testNow); err != nil || d.Class != test.want {
			t.Errorf("%s: class is %s, want %s (%v): %+v", name, d.Class, test.want, err, d.Permissions)
		}
	}
	for _, test := range []struct {
		wide, narrow string
		want         bool
	}{
		{"a.example", "a.example", true},
		{"*.example", "a.example", true},
		{"*.example", "b.a.example", false},
		{"**.example", "b.a.example", true},
		{"**.example", "*.example", true},
		{"**.example", "*.a.example", true},
		{"*.example", "**.example", false},
		{"*.example", "example", false},
		{"a.example", "*.example", false},
		{"*.example", "*.a.example", false},
	} {
		if got := coversHost(test.wide, test.narrow); got != test.want {
			t.Errorf("%s covers %s: %t, want %t", test.wide, test.narrow, got, test.want)
		}
	}
}

func TestDiffRegions(t *testing.T) {
	regions := func(list string) *File {
		return manifestOf(t, "version: 2.4.1", "version: 3.0.0", "classes: [internal], ", "classes: [internal], "+list)
	}
	for _, test := range []struct {
		from, to string
		want     Class
	}{
		{"regions: [eu], ", "regions: [eu, us], ", ClassWider},
		{"regions: [eu], ", "", ClassWider},
		{"regions: [eu], ", "regions: [us], ", ClassWider},
		{"regions: [eu, us], ", "regions: [eu], ", ClassNarrower},
		{"regions: [eu], ", "regions: [eu], ", ClassNone},
	} {
		after := regions(test.to)
		after.Spec.Version = "4.0.0"
		if d, err := Diff(t.Context(), regions(test.from), after, testNow); err != nil || d.Class != test.want {
			t.Errorf("%q to %q: class is %s, want %s (%v)", test.from, test.to, d.Class, test.want, err)
		}
	}
}

func TestDiffVersions(t *testing.T) {
	wider := []string{"methods: [GET]", "methods: [GET, HEAD]"}
	narrower := []string{"/api/v3/timeline/**", "/api/v3/timeline/entries"}
	for _, test := range []struct {
		from, to string
		change   []string
		refused  string // "" for none
	}{
		{"2.4.1", "2.4.2", nil, ""},
		{"2.4.1", "2.4.1", nil, "not after"},
		{"2.4.1", "2.4.0", nil, "not after"},
		{"2.4.1", "2.4.1+build.2", nil, "not after"},
		{"2.4.1", "2.4.2", narrower, "demands a minor version: write 2.5.0"},
		{"2.4.1", "2.5.0", narrower, ""},
		{"2.4.1", "2.5.0", wider, "demands a major version: write 3.0.0"},
		{"2.4.1", "3.0.0", wider, ""},
		{"2.4.1", "3.0.0-rc.1", wider, ""},
		{"3.0.0-rc.1", "3.0.0", wider, "demands a major version: write 4.0.0"},
		{"3.0.0-rc.1", "3.0.0", nil, ""},
		{"0.3.0", "0.4.0", wider, "demands a major version: write 1.0.0"},
		{"0.3.0", "1.0.0", wider, ""},
		{"2.9.0", "2.10.0", narrower, ""},
		{"9.0.0", "10.0.0", wider, ""},
	} {
		before := manifestOf(t)
		after := manifestOf(t, test.change...)
		before.Spec.Version, after.Spec.Version = test.from, test.to
		d, err := Diff(t.Context(), before, after, testNow)
		if err != nil || (test.refused == "") != (d.Refused == "") || !strings.Contains(d.Refused, test.refused) {
			t.Errorf("%s to %s: refused is %q, want %q (%v)", test.from, test.to, d.Refused, test.refused, err)
		}
	}
}

func TestDiffRefuses(t *testing.T) {
	good := manifestOf(t)
	other := manifestOf(t, "name: crm-sync", "name: other")
	if _, err := Diff(t.Context(), good, other, testNow); err == nil || !strings.Contains(err.Error(), "two versions of one plugin") {
		t.Errorf("error is %v", err)
	}
	version := manifestOf(t, "version: 2.4.1", "version: v3")
	if _, err := Diff(t.Context(), good, version, testNow); err == nil || !strings.Contains(err.Error(), "not a semantic version") {
		t.Errorf("error is %v", err)
	}
	bad := manifestOf(t, "methods: [GET]", "methods: [TRACE]")
	if _, err := Diff(t.Context(), good, bad, testNow); err == nil || !strings.Contains(err.Error(), "manifest.yaml:16:15: spec.permissions[0].methods[0]: TRACE") {
		t.Errorf("error is %v", err)
	}
	unlisted := manifestOf(t, "credential: crm-token", "credential: other")
	if _, err := Diff(t.Context(), good, unlisted, testNow); err == nil || !strings.Contains(err.Error(), "does not list") {
		t.Errorf("error is %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := Diff(ctx, good, manifestOf(t, "version: 2.4.1", "version: 2.4.2"), testNow); err == nil && d.Refused == "" {
		t.Errorf("a comparison without time passes: %+v", d)
	}
}
