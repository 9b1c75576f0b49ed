package manifest

import (
	"errors"
	"regexp"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// importGrafana reads the plugin.json of a Grafana plugin
// (grafana.com/developers/plugin-tools/reference/plugin-json): the routes of its proxy.
func importGrafana(d *Draft, root *node) error {
	if !root.get("id").exists() || !root.get("type").exists() {
		return errors.New("has no id and type; name the plugin.json of a Grafana plugin")
	}
	d.Name = name(root.get("id").str())
	d.describe(root.get("info", "version"), root.get("info", "description"))
	if root.get("backend").isTrue() {
		d.todo(root.get("backend"), "the backend connects to hosts that plugin.json does not state; record them with chaperone run --config FILE in mode observe, then chaperonectl plugin init --log")
	}
	if s := root.get("iam"); s.exists() {
		d.todo(s, "asks for permissions in Grafana itself; add a permission for its API if the plugin calls it")
	}
	for _, r := range root.get("routes").items {
		grafanaRoute(d, r)
	}
	return nil
}

// grafanaRoute adds what a route forwards: every path below its URL, with its method.
func grafanaRoute(d *Draft, r *node) {
	address := r.get("url")
	e, err := parseEndpoint(address.str())
	if err != nil {
		d.todo(address, "%s %v", quote(address.str()), err)
		return
	}
	rule := authzRule(e)
	rule.Paths = []string{strings.TrimRight(e.path, "/") + "/**"}
	if m := r.get("method").str(); m != "" && m != "*" {
		rule.Methods = []string{strings.ToUpper(m)}
	}
	probe := rule
	if len(probe.Methods) == 0 {
		probe.Methods = []string{"GET"}
	}
	if why := refused(probe); why != "" {
		d.todo(r, "%s", why)
		return
	}
	if c := grafanaCredential(d, r); c != "" && rule.To.Scheme != authz.SchemeHTTP {
		rule.Credential = c
	} else if c != "" {
		d.todo(r, "credential %s would be sent without TLS; ask the server for https", c)
	}
	label := r.get("path").str()
	if name(label) == "" {
		label = e.label()
	}
	id := d.permit(label, rule)
	if len(rule.Methods) == 0 {
		d.todo(r, "states no method; write those of permission %s", id)
	}
}

// grafanaCredential returns the one credential of a route, "" without one.
func grafanaCredential(d *Draft, r *node) string {
	for _, field := range []string{"tokenAuth", "jwtTokenAuth"} {
		if t := r.get(field); t.exists() {
			kind := configs.CredentialOAuth2
			if field == "jwtTokenAuth" {
				kind = configs.CredentialJWT
			}
			id := d.credential(r.get("path").str()+"-token", kind, "")
			d.todo(t, "the token comes from %s; whoever runs the plugin states it with the source of credential %s", quote(t.get("url").str()), id)
			return id
		}
	}
	var ids []string
	for _, place := range []struct {
		field string
		kind  configs.CredentialKind
	}{{"headers", configs.CredentialHeader}, {"urlParams", configs.CredentialQuery}} {
		for _, h := range r.get(place.field).items {
			secret := secureField(h.get("content").str())
			if secret == "" {
				continue
			}
			kind := place.kind
			if content := strings.TrimSpace(h.get("content").str()); kind == configs.CredentialHeader && strings.EqualFold(h.get("name").str(), "Authorization") {
				if strings.HasPrefix(content, "Bearer ") {
					kind = configs.CredentialBearer
				} else if strings.HasPrefix(content, "Basic ") {
					kind = configs.CredentialBasic
				}
			}
			if len(ids) == 0 {
				ids = append(ids, d.credential(secret, kind, ""))
				continue
			}
			d.todo(h, "is a second credential of one route; a permission has one")
		}
	}
	if len(ids) == 0 {
		return ""
	}
	return ids[0]
}

// secureField returns the field of secureJsonData that a template names, "" without one.
func secureField(template string) string {
	found := regexp.MustCompile(`\.SecureJsonData\.([A-Za-z0-9_]{1,64})`).FindStringSubmatch(template)
	if found == nil {
		return ""
	}
	return found[1]
}
