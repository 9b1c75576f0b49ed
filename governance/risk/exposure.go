package risk

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
)

// exposure are the points of permissions: class of data times verb, and what is added. They
// count in descending order, each with half the weight of the one before, so that many small
// permissions are not worse than a large one.
func (f *facts) exposure(p configs.ExposurePoints) []Addend {
	if f.Manifest == nil {
		return nil
	}
	var out []Addend
	for i := range f.Manifest.Permissions {
		out = append(out, f.permission(&f.Manifest.Permissions[i], p))
	}
	slices.SortFunc(out, func(a, b Addend) int {
		return cmp.Or(cmp.Compare(b.Points, a.Points), cmp.Compare(a.Ref, b.Ref))
	})
	for i := range out {
		out[i].Counted = out[i].Points >> min(i, maxHalvings)
	}
	return slices.DeleteFunc(out, func(a Addend) bool { return a.Points == 0 })
}

// maxHalvings makes nothing of any number of points.
const maxHalvings = 32

func (f *facts) permission(q *configs.Permission, p configs.ExposurePoints) Addend {
	class, classPoints := classOf(&q.Rule, p)
	verb, verbPoints := verbOf(&q.Rule, p)
	points := int(classPoints) * int(verbPoints)
	why := []string{class + " " + strconv.Itoa(int(classPoints)) + " x " + verb + " " + strconv.Itoa(int(verbPoints))}
	add := func(is bool, n configs.Points, text string) {
		if is {
			points += int(n)
			why = append(why, text+" "+strconv.Itoa(int(n)))
		}
	}
	add(slices.ContainsFunc(q.To.Hosts, func(h string) bool { return strings.Contains(h, "*") }), p.WildcardHost, "wildcard host")
	add(slices.ContainsFunc(q.To.Hosts, f.isNew), p.NewInternetHost, "new internet host")
	add(f.longLived(q.Credential), p.LongLivedCredential, "long-lived credential")
	if q.Optional {
		points = half(points)
		why = append(why, "optional, half")
	}
	return Addend{Code: "permission", Ref: q.ID, Points: points, Evidence: f.Target.Manifest, Text: strings.Join(why, ", ")}
}

// classOf returns the most sensitive class of a permission's data. One that states no class
// counts as restricted: leaving the class out must not lower the score.
func classOf(rule *authz.Rule, p configs.ExposurePoints) (name string, points configs.Points) {
	of := map[authz.DataClass]configs.Points{
		authz.DataPublic: p.Public, authz.DataInternal: p.Internal, authz.DataConfidential: p.Confidential, authz.DataRestricted: p.Restricted,
	}
	if len(rule.Data.Classes) == 0 {
		return "no class stated", p.Restricted
	}
	for _, class := range rule.Data.Classes {
		n, known := of[class]
		if !known {
			n = p.Restricted
		}
		if name == "" || n > points || n == points && string(class) < name {
			name, points = string(class), n
		}
	}
	return name, points
}

// verbOf returns the strongest verb of a permission. Access whose effect a sidecar cannot see
// counts as delete.
func verbOf(rule *authz.Rule, p configs.ExposurePoints) (name string, points configs.Points) {
	verbs := rule.Methods
	switch {
	case rule.Statements != nil:
		verbs = rule.Statements.Verbs
	case len(rule.Commands) > 0:
		verbs = rule.Commands
	}
	if rule.Opaque == authz.OpaqueAllow || len(verbs) == 0 || len(rule.Upgrades) > 0 {
		return "delete", p.Delete
	}
	name, points = "read", p.Read
	for _, v := range verbs {
		switch v = strings.ToLower(v); {
		case slices.Contains(readingVerbs(), v):
		case slices.Contains(writingVerbs(), v):
			if name == "read" {
				name, points = "write", p.Write
			}
		default:
			return "delete", p.Delete
		}
	}
	return name, points
}

// readingVerbs are HTTP methods that are safe (RFC 9110, section 9.2.1), and verbs of SQL and
// commands of Redis that only read.
func readingVerbs() []string {
	return []string{"get", "head", "options", "trace", "query", "select", "show", "copy-out", "mget", "exists", "ttl", "pttl", "type", "ping", "@read"}
}

// writingVerbs are those that add or change.
func writingVerbs() []string {
	return []string{"post", "put", "patch", "insert", "update", "copy-in", "merge", "set", "setex", "mset", "incr", "decr", "expire", "lpush", "rpush", "sadd", "hset", "zadd", "publish"}
}

// isNew reports whether a host is on the internet and is not one of the version before.
func (f *facts) isNew(host string) bool {
	if isPrivate(host) {
		return false
	}
	return f.Previous == nil || !slices.ContainsFunc(f.Previous.Permissions, func(q configs.Permission) bool {
		return slices.ContainsFunc(q.To.Hosts, func(old string) bool { return strings.EqualFold(old, host) })
	})
}

// isPrivate reports whether a host can only be an inner one: an address that is not global
// (RFC 6890), or a name of a zone that the internet does not have (RFC 6761, RFC 8375, ICANN
// on .internal).
func isPrivate(host string) bool {
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || slices.ContainsFunc([]string{".internal", ".localhost", ".local", ".home.arpa", ".test", ".cluster.local"},
		func(zone string) bool { return strings.HasSuffix(host, zone) })
}

// longLived reports whether a credential may live long: one whose kind is not made for each
// use, and one that the manifest does not describe.
func (f *facts) longLived(name string) bool {
	if name == "" {
		return false
	}
	for _, c := range f.Manifest.Credentials {
		if c.Name == name {
			short := []configs.CredentialKind{configs.CredentialSigV4, configs.CredentialOAuth2, configs.CredentialJWT, configs.CredentialDatabase, configs.CredentialMTLS}
			return !slices.Contains(short, c.Kind)
		}
	}
	return true
}
