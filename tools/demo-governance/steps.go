package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// The folders of the requests.
const (
	first = "corp/plugins/weather/1.4.0"
	wider = "corp/plugins/weather/1.5.0"
	next  = "corp/plugins/weather/2.0.0"
)

const grantFile = "corp/grants/weather.dsse.json"

func steps() []step {
	return []step{
		{"Six people make keys, and a trust root states who signs what", false, setUp},
		{"An author submits a plugin, for one artifact", false, submitted},
		{"A scanner finds something: the finding blocks until security states why it may pass", false, found},
		{"A pilot measures the plugin, and sees what it accesses", true, piloted},
		{"Security and compliance approve exactly the bytes that they reviewed; then the grant is issued", false, approved},
		{"A sidecar loads what they signed, and enforces it", false, enforced},
		{"A version asks for more: it is a major version", false, grown},
		{"It exceeds a ceiling: an exemption has an owner, a ticket and an end, and old approvals do not count", false, exempted},
		{"An approval that ended issues nothing", false, ended},
		{"A rollback is a new generation", false, rolledBack},
		{"The sidecar refuses a swapped program, an edited grant and an unsigned one", false, forged},
	}
}

func setUp(ctx context.Context, e *env) error {
	if err := e.keys(ctx, "dev", "ana", "bo", "cy", "ci", "rel"); err != nil {
		return err
	}
	signer := func(roles, name string) string { return roles + "=" + name + "@corp=" + e.halves[name] }
	return all(
		func() error {
			say("$ chaperonectl plugin trust init corp --signer author=dev@corp=... and five more")
			r, err := e.quietly(ctx, "chaperonectl", "plugin", "trust", "init", "corp", "--threshold", "root=2",
				"--signer", signer("author", "dev"), "--signer", signer("root,policy", "ana"), "--signer", signer("root,security", "bo"),
				"--signer", signer("root,compliance", "cy"), "--signer", signer("scanner,measurer", "ci"), "--signer", signer("release", "rel"))
			if err == nil && r.status != 0 {
				err = errors.New(r.output)
			}
			return err
		},
		func() error { return e.copy("guardrail.yaml", "corp/guardrails/company.yaml") },
		func() error { return e.copy("rubric.yaml", "corp/rubric.yaml") },
		func() error { return os.MkdirAll(e.path("corp/exemptions"), 0o755) },
		func() error {
			return e.plugin(ctx, refused("0 of 1 of role policy"), "sign", "corp/guardrails/company.yaml", "--key", "bo.key")
		},
		func() error {
			return e.plugin(ctx, works("signed by ana@corp"), "sign", "corp/guardrails/company.yaml", "--key", "ana.key")
		},
		func() error {
			return e.plugin(ctx, works("signed by ana@corp"), "sign", "corp/rubric.yaml", "--key", "ana.key")
		},
		func() error {
			proved("a guardrail is in force only with the signature of its role")
			return nil
		},
	)
}

func submitted(ctx context.Context, e *env) error {
	return all(
		func() error { return e.version("1.4.0", "weather", false) },
		func() error { return e.plugin(ctx, works(), "check", first) },
		func() error {
			return e.plugin(ctx, refused("and the manifest states sha256:"), "submit", first, "--artifact", "api-ca.pem", "--key", "dev.key")
		},
		func() error {
			return e.plugin(ctx, works("submitted by dev@corp"), "submit", first, "--artifact", "weather", "--key", "dev.key")
		},
		func() error { return e.plugin(ctx, works("stage: security"), "status", first) },
	)
}

func found(ctx context.Context, e *env) error {
	finding := ""
	return all(
		func() error {
			return e.plugin(ctx, refused("is signed by role scanner"), "evidence", "add", first, "scan.sarif", "--key", "dev.key")
		},
		func() error {
			return e.plugin(ctx, works("1 findings, 1 high, signed by ci@corp"), "evidence", "add", first, "scan.sarif", "sbom.cdx.json", "--key", "ci.key")
		},
		func() error {
			r, err := e.command(ctx, "chaperonectl", "plugin", "evidence", "verify", first)
			if err != nil {
				return err
			}
			show(r.output, "blocks: ", "to unblock: ")
			finding = regexp.MustCompile(`F-[0-9a-f]{20}`).FindString(r.output)
			if r.status != 1 || finding == "" {
				return fmt.Errorf("status %d: no finding blocks\n%s", r.status, r.output)
			}
			return nil
		},
		func() error {
			program, err := e.read("weather")
			if err != nil {
				return err
			}
			return e.fill("vex.json.tmpl", "vex.json", map[string]string{"Now": in(0), "Finding": finding, "Digest": dsse.Digest([]byte(program))})
		},
		func() error {
			return e.plugin(ctx, works("signed by dev@corp (author)"), "evidence", "add", first, "vex.json", "--key", "dev.key")
		},
		func() error { return e.plugin(ctx, refused("1 findings block"), "evidence", "verify", first) },
		func() error {
			return e.plugin(ctx, works("bo@corp (security)"), "evidence", "add", first, "vex.json", "--key", "bo.key")
		},
		func() error { return e.plugin(ctx, works("0 findings block"), "evidence", "verify", first) },
		func() error {
			proved("the author's own statement does not count; that of security does")
			return nil
		},
	)
}

func piloted(ctx context.Context, e *env) error {
	return all(
		func() error {
			return e.plugin(ctx, works("performance: PASSED", "runtime-trace-"), "pilot", first, "--config", "pilot.yaml", "--for", "4s", "--key", "ci.key",
				"--", e.path("weather"), "-K", e.path("curlrc"), "--rate", "10/s", e.url("/v1/forecast?day=[1-10000]"))
		},
		func() error {
			return e.plugin(ctx, works("measured-performance", "runtime-trace"), "evidence", "list", first)
		},
	)
}

func approved(ctx context.Context, e *env) error {
	return all(
		func() error { return e.plugin(ctx, works("risk", "+10"), "risk", first) },
		func() error { return e.plugin(ctx, works("**Risk", "| read |"), "review", first) },
		func() error {
			return e.plugin(ctx, refused("no key of dev@corp is in role security"), "approve", first, "--role", "security", "--key", "dev.key")
		},
		func() error {
			return e.approve(ctx, first, "--role", "security", "--key", "bo.key")
		},
		func() error {
			return e.plugin(ctx, refused("1 more of role compliance has to approve"), "issue", first, "--key", "rel.key")
		},
		func() error {
			return e.approve(ctx, first, "--role", "compliance", "--key", "cy.key")
		},
		func() error {
			return e.plugin(ctx, refused("0 of 1 of role release"), "issue", first, "--key", "bo.key")
		},
		func() error { return e.plugin(ctx, works(": grant sha256:"), "issue", first, "--key", "rel.key") },
		func() error {
			return e.plugin(ctx, works("generation 1", "approved by"), "verify", grantFile, "--repo", "corp")
		},
	)
}

func enforced(ctx context.Context, e *env) error {
	return all(
		func() error { return e.reaches(ctx, "weather", "GET", "/v1/forecast") },
		func() error { return e.stopped(ctx, "weather", "POST", "/v1/orders", "method_not_granted") },
		func() error {
			proved("the API was not reached by what nobody approved")
			return nil
		},
	)
}

func grown(ctx context.Context, e *env) error {
	return all(
		func() error { return e.version("1.5.0", "weather-2", true) },
		func() error { return e.plugin(ctx, refused("major"), "diff", first, wider) },
		func() error { return os.RemoveAll(e.path(wider)) },
		func() error { return e.version("2.0.0", "weather-2", true) },
		func() error { return e.plugin(ctx, works("wider"), "diff", first, next) },
		func() error {
			return e.plugin(ctx, works("submitted by dev@corp"), "submit", next, "--artifact", "weather-2", "--key", "dev.key")
		},
		func() error {
			return e.plugin(ctx, works("0 findings"), "evidence", "add", next, "clean.sarif", "--key", "ci.key")
		},
		func() error {
			proved("the version has to step as far as the difference demands; a new artifact is scanned again")
			return nil
		},
	)
}

// copyApprovals copies the approvals of the first version to the next one.
func copyApprovals(e *env) error {
	say("$ cp -r %s/approvals %s", first, next)
	return os.CopyFS(e.path(next+"/approvals"), os.DirFS(e.path(first+"/approvals")))
}

func exempted(ctx context.Context, e *env) error {
	exempt := func(want outcome, name, rule string, more ...string) func() error {
		args := []string{
			"exempt", name, "--repo", "corp", "--plugin", "weather", "--permission", "order", "--rule", rule,
			"--owner", "payments", "--ticket", "SEC-8812", "--justification", "Orders are new", "--key", "ana.key",
		}
		return func() error { return e.plugin(ctx, want, append(args, more...)...) }
	}
	return all(
		func() error { return e.plugin(ctx, refused("ceiling"), "check", next) },
		exempt(refused("no exemption passes"), "ex-1", "never.metadata-service", "--expires", "10d"),
		exempt(works("signed by ana@corp"), "ex-1", "ceilings.methods", "--allow", "{methods: [POST]}", "--expires", "10d", "--max-uses", "1000"),
		func() error { return e.plugin(ctx, works("ex-1"), "check", next) },
		func() error { return e.plugin(ctx, works("exemption", "wider"), "review", next) },
		func() error { return copyApprovals(e) },
		func() error {
			return e.plugin(ctx, refused("1 more of role security", "1 more of role compliance"), "promote", next, "--no-notify", "--key", "rel.key")
		},
		func() error {
			proved("the approvals of 1.4.0 do not count for 2.0.0")
			return os.RemoveAll(e.path(next + "/approvals"))
		},
		func() error {
			proved("the exemption is signed, ends, is counted, and no exemption passes a never-list")
			return nil
		},
	)
}

func ended(ctx context.Context, e *env) error {
	const lasts = 2 * time.Second
	return all(
		func() error {
			return e.approve(ctx, next, "--role", "security", "--expires", "2s", "--key", "bo.key")
		},
		func() error {
			return e.approve(ctx, next, "--role", "compliance", "--key", "cy.key")
		},
		func() error { return pause(ctx, lasts) },
		func() error {
			return e.plugin(ctx, refused("expired"), "promote", next, "--no-notify", "--key", "rel.key")
		},
		func() error {
			return e.approve(ctx, next, "--role", "security", "--key", "bo.key")
		},
		func() error {
			return e.plugin(ctx, works("0 would be refused, 1 more allowed", "promotion of weather 2.0.0", ": grant sha256:"),
				"promote", next, "--log", "state/audit.jsonl", "--state-dir", "state", "--no-notify", "--key", "rel.key")
		},
		func() error { return e.reaches(ctx, "weather-2", "POST", "/v1/orders") },
		func() error {
			proved("2.0.0 may do what 1.4.0 may not, once both roles approved it")
			return nil
		},
	)
}

// pause waits until an approval has ended.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func rolledBack(ctx context.Context, e *env) error {
	second, err := e.read(grantFile)
	if err != nil {
		return err
	}
	back := []string{"rollback", first, "--reason", "INC-311", "--no-notify", "--key", "rel.key"}
	return all(
		func() error { return e.plugin(ctx, works("with the content of generation 1"), back...) },
		func() error { return e.plugin(ctx, refused("has to approve"), back...) },
		func() error {
			return e.approve(ctx, first, "--role", "security", "--key", "bo.key")
		},
		func() error {
			return e.approve(ctx, first, "--role", "compliance", "--key", "cy.key")
		},
		func() error { return e.plugin(ctx, works("rollback of weather 1.4.0", ": grant sha256:"), back...) },
		func() error { return e.plugin(ctx, works("generation 3"), "verify", grantFile, "--repo", "corp") },
		func() error { return e.reaches(ctx, "weather", "GET", "/v1/forecast") },
		func() error { return e.stopped(ctx, "weather", "POST", "/v1/orders", "method_not_granted") },
		func() error {
			say("putting the file of generation 2 back")
			return e.instead(grantFile, second, func() error {
				return e.stopped(ctx, "weather-2", "POST", "/v1/orders", "is 2, and generation 3 was in force")
			})
		},
		func() error {
			proved("a generation that was replaced is never loaded again")
			return nil
		},
	)
}

// instead puts another text into a file while do runs.
func (e *env) instead(name, text string, do func() error) error {
	path := e.path(name)
	before, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(text), info.Mode().Perm()); err != nil {
		return err
	}
	return errors.Join(do(), os.WriteFile(path, before, info.Mode().Perm()))
}

func forged(ctx context.Context, e *env) error {
	program, err := e.read("weather")
	if err != nil {
		return err
	}
	grant, err := e.read(grantFile)
	if err != nil {
		return err
	}
	edited, err := edit(grant)
	if err != nil {
		return err
	}
	blocked := func(reasons ...string) func() error {
		return func() error { return e.stopped(ctx, "weather", "GET", "/v1/forecast", reasons...) }
	}
	return all(
		func() error {
			say("adding a byte to the program")
			return e.instead("weather", program+"!", blocked("its digest is sha256:"))
		},
		func() error {
			say("adding POST to the methods of the signed grant")
			return e.instead(grantFile, edited, blocked("signature"))
		},
		func() error {
			say("adding a grant that nobody signed")
			const name = "corp/grants/other.yaml"
			if err := e.write(name, []byte(unsignedGrant), 0o644); err != nil {
				return err
			}
			return errors.Join(blocked("is not signed, and spec.trust of the Sidecar demands it")(), os.Remove(e.path(name)))
		},
		func() error { return e.reaches(ctx, "weather", "GET", "/v1/forecast") },
		func() error {
			return e.expect(ctx, works("verified"), "chaperone", "audit", "verify", "--config", "sidecar.yaml")
		},
		func() error {
			proved("the API was not reached by any of this, and the log verifies")
			return nil
		},
	)
}

const unsignedGrant = `apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: other}
spec:
  plugin: weather
  notAfter: 2099-01-01T00:00:00Z
  rules:
  - {id: all, reason: Anything, to: {hosts: [api.weather.example]}, methods: [POST], paths: ["/**"]}
`

// edit adds a method to the payload of a signed grant.
func edit(grant string) (string, error) {
	var envelope map[string]json.RawMessage
	if err := json.Unmarshal([]byte(grant), &envelope); err != nil {
		return "", err
	}
	var payload []byte // base64 in JSON
	if err := json.Unmarshal(envelope["payload"], &payload); err != nil {
		return "", err
	}
	changed := strings.Replace(string(payload), `"GET"`, `"GET","POST"`, 1)
	if changed == string(payload) {
		return "", fmt.Errorf("%s: no method to change", filepath.Base(grantFile))
	}
	envelope["payload"] = json.RawMessage(`"` + base64.StdEncoding.EncodeToString([]byte(changed)) + `"`)
	out, err := json.Marshal(envelope)
	return string(out), err
}
