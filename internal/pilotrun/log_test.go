package pilotrun

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/compliance"
)

// logOf writes a log of decisions and ends, and returns its file.
func logOf(t *testing.T, records ...authz.Record) string {
	t.Helper()
	dir := t.TempDir()
	log, err := audit.Open(audit.Config{StateDir: dir, FullPaths: func() bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		r := &records[i]
		r.Time, r.Plugin, r.UID = time.Now(), "reader", -1
		if r.Host == "" {
			r.Host, r.Port = "db.example", 5432
		}
		if err := log.Record(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, auditFile)
}

// TestAccesses lists accesses that may have reached their destination, with the region and
// the version of TLS that the end states; those of statements are the session's.
func TestAccesses(t *testing.T) {
	const decision, end = authz.KindDecision, authz.KindEnd
	granted, refused := "granted", "upstream_unreachable"
	session := authz.Record{Kind: decision, Decision: "s", Allowed: true, Reason: granted, Rule: "connect", Scheme: "postgres"}
	statement := func(id, reason, rule string) authz.Record {
		return authz.Record{Kind: decision, Decision: id, Session: "s", Allowed: true, Reason: reason, Rule: rule, Scheme: "postgres", Count: 3}
	}
	ended := func(r authz.Record) authz.Record {
		r.Kind, r.Address, r.Region, r.TLS = end, "192.0.2.1:5432", "eu", "1.3"
		return r
	}
	request := authz.Record{Kind: decision, Decision: "r", Allowed: true, Reason: granted, Rule: "read", Scheme: "https"}
	with := func(r authz.Record, change func(*authz.Record)) authz.Record { change(&r); return r }
	access := func(id, rule string, scheme authz.Scheme, region, tls string) compliance.Access {
		return compliance.Access{Decision: id, Plugin: "reader", Rule: rule, Scheme: scheme, Host: "db.example", Region: region, TLS: tls}
	}
	for name, c := range map[string]struct {
		log  []authz.Record
		want []compliance.Access
	}{
		"a request": {[]authz.Record{request, ended(request)}, []compliance.Access{access("r", "read", "https", "eu", "1.3")}},
		"statements without ends, by rule": {
			[]authz.Record{session, statement("1", granted, "a"), statement("2", granted, "b"), statement("3", granted, "a"), statement("4", "observed", "a"), ended(session)},
			[]compliance.Access{
				access("s", "connect", "postgres", "eu", "1.3"), access("4", "", "postgres", "eu", "1.3"),
				access("1", "a", "postgres", "eu", "1.3"), access("2", "b", "postgres", "eu", "1.3"),
			},
		},
		"a statement that ended": {
			[]authz.Record{session, statement("1", granted, "a"), ended(statement("1", granted, "a")), ended(session)},
			[]compliance.Access{access("s", "connect", "postgres", "eu", "1.3"), access("1", "a", "postgres", "eu", "1.3")},
		},
		"a session that never ended": {
			[]authz.Record{session, statement("1", granted, "a")},
			[]compliance.Access{access("s", "connect", "postgres", "", ""), access("1", "a", "postgres", "", "")},
		},
		"one that was cut": {
			[]authz.Record{request, with(ended(request), func(r *authz.Record) { r.Allowed, r.Reason = false, "revoked" })},
			[]compliance.Access{access("r", "read", "https", "eu", "1.3")},
		},
		"a handshake that failed": {
			[]authz.Record{session, with(ended(session), func(r *authz.Record) { r.Allowed, r.Reason, r.TLS = false, refused, "" })}, nil,
		},
		"plain http that was cut": {
			[]authz.Record{with(request, func(r *authz.Record) { r.Scheme = "http" }), with(ended(request), func(r *authz.Record) { r.Scheme, r.Allowed, r.Reason, r.TLS = "http", false, "revoked", "" })},
			[]compliance.Access{access("r", "read", "http", "eu", "")},
		},
		"an address that is not allowed": {
			[]authz.Record{request, with(ended(request), func(r *authz.Record) {
				r.Allowed, r.Reason, r.TLS, r.Address = false, "address_not_allowed", "", "192.0.2.1"
			})}, nil,
		},
		"a refusal": {[]authz.Record{with(request, func(r *authz.Record) { r.Allowed, r.Reason = false, "no_grant" })}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []compliance.Access
			for a, err := range Accesses(t.Context(), logOf(t, c.log...), "reader") {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, a)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
