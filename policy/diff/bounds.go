package diff

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/policy"
)

// guardrails lists the bounds that one side has and the other does not. A bound that is
// removed or relaxed is wider although no grant reaches it: the next one may.
func (p *Plugin) guardrails(pair *policy.Pair) {
	p.Wider = append(p.Wider, missingBounds(&pair.Before, &pair.After, "is removed")...)
	p.Narrower = append(p.Narrower, missingBounds(&pair.After, &pair.Before, "is added")...)
}

// bound is one bound of a guardrail.
type bound struct {
	guardrail string // its name
	field     string // of the document
	kind      string // host, address, socket, or the name of a ceiling
	value     string
	ceilings  authz.Ceilings         // of its guardrail
	covers    func(other bound) bool // reports whether this bound refuses all that one of the same kind does
}

func (b bound) text() string {
	if strings.HasPrefix(b.field, "spec.never") {
		return "never " + b.kind + " " + b.value
	}
	return "ceiling " + b.kind + " " + b.value
}

// missingBounds returns the bounds of one side that no bound of the other covers. Their
// positions are those of the side that has them.
func missingBounds(have, lack *policy.Subject, how string) (out []Change) {
	others := bounds(lack)
	origins := map[string]authz.Origin{}
	for _, g := range have.Input.Guardrails {
		origins[g.Name] = g.Origin
	}
	for _, b := range bounds(have) {
		if !slices.ContainsFunc(others, func(o bound) bool { return o.kind == b.kind && (o.value == b.value || o.covers(b)) }) {
			out = append(out, Change{Class: ClassGuardrail, Summary: b.text() + " " + how, Rule: b.guardrail, Position: position(have, origins[b.guardrail], b.field)})
		}
	}
	return out
}

// bounds returns the bounds of every guardrail that applies to the plugin.
func bounds(s *policy.Subject) (out []bound) {
	for i := range s.Input.Guardrails {
		g := &s.Input.Guardrails[i]
		if !g.AppliesTo(s.Plugin) {
			continue
		}
		for j, n := range g.Never {
			field := fmt.Sprintf("spec.never[%d]", j)
			for _, h := range n.Hosts {
				out = append(out, bound{g.Name, field, "host", h, g.Ceilings, func(o bound) bool { return below(h, o.value) }})
			}
			for _, a := range n.Addresses {
				out = append(out, bound{g.Name, field, "address", a.String(), g.Ceilings, func(o bound) bool { return within(a, o.value) }})
			}
			for _, socket := range n.Sockets {
				out = append(out, bound{g.Name, field, "socket", socket, g.Ceilings, func(bound) bool { return false }})
			}
		}
		out = append(out, ceilings(g)...)
	}
	return out
}

// below reports whether a host pattern holds everything that another one does.
func below(pattern, other string) bool {
	base, deep := strings.CutPrefix(pattern, "**.")
	return deep && strings.HasSuffix(other, "."+base)
}

// within reports whether a prefix holds another one.
func within(p netip.Prefix, other string) bool {
	o, err := netip.ParsePrefix(other)
	return err == nil && p.Bits() <= o.Bits() && p.Contains(o.Addr())
}

// ceilings returns the ceilings that a guardrail states.
func ceilings(g *authz.Guardrail) (out []bound) {
	c := g.Ceilings
	add := func(stated bool, kind, value string, covers func(o authz.Ceilings) bool) {
		if stated {
			out = append(out, bound{g.Name, "spec.ceilings." + kind, kind, value, c, func(other bound) bool { return covers(other.ceilings) }})
		}
	}
	add(c.GrantLifetime > 0, "grantLifetime", time.Duration(c.GrantLifetime).String(), func(o authz.Ceilings) bool { return c.GrantLifetime <= o.GrantLifetime })
	add(c.CredentialLifetime > 0, "credentialLifetime", time.Duration(c.CredentialLifetime).String(), func(o authz.Ceilings) bool { return c.CredentialLifetime <= o.CredentialLifetime })
	add(len(c.Schemes) > 0, "schemes", fmt.Sprint(c.Schemes), func(o authz.Ceilings) bool { return subset(c.Schemes, o.Schemes) })
	add(len(c.Methods) > 0, "methods", fmt.Sprint(c.Methods), func(o authz.Ceilings) bool { return subset(c.Methods, o.Methods) })
	add(c.TLSMin != "", "tlsMin", c.TLSMin, func(o authz.Ceilings) bool { return c.TLSMin >= o.TLSMin })
	add(c.WildcardHosts != "", "wildcardHosts", string(c.WildcardHosts), func(o authz.Ceilings) bool {
		order := []authz.WildcardHosts{authz.WildcardNone, authz.WildcardSingle, authz.WildcardAny}
		return slices.Index(order, c.WildcardHosts) <= slices.Index(order, o.WildcardHosts)
	})
	add(c.HostsPerGrant > 0, "hostsPerGrant", fmt.Sprint(c.HostsPerGrant), func(o authz.Ceilings) bool { return c.HostsPerGrant <= o.HostsPerGrant })
	for _, l := range c.Limits.Stated() {
		add(true, "limits."+l.Kind.String(), l.Limit.String(), func(o authz.Ceilings) bool {
			return slices.ContainsFunc(o.Limits.Stated(), func(top authz.StatedLimit) bool { return top.Kind == l.Kind && l.Limit.Within(top.Limit) })
		})
	}
	return out
}

func subset[T comparable](part, all []T) bool {
	return !slices.ContainsFunc(part, func(v T) bool { return !slices.Contains(all, v) })
}

// sidecars lists how the confinement by the Sidecar differs. It is wider if the plugin is
// confined less; other fields of the Sidecar that decide about it are only listed.
func (p *Plugin) sidecars(pair *policy.Pair) {
	was, is := pair.Before.Sidecar, pair.After.Sidecar
	if was == nil || is == nil {
		if was != nil {
			p.Changed = append(p.Changed, Change{Class: ClassConfinement, Summary: "no Sidecar states the confinement, was stated by " + pair.Before.Path})
		}
		return
	}
	for _, f := range confinement(&pair.Before, &pair.After) {
		f.was, f.is = relative(f.was, &pair.Before), relative(f.is, &pair.After)
		if f.was == f.is {
			continue
		}
		c := Change{Class: f.class, Summary: differ(strings.TrimPrefix(f.path, "spec."), f.was, f.is), Position: position(&pair.After, "", f.path)}
		switch {
		case f.wider:
			p.Wider = append(p.Wider, c)
		case f.narrower:
			p.Narrower = append(p.Narrower, c)
		default:
			p.Changed = append(p.Changed, c)
		}
	}
}

// confined is one field of a Sidecar that confines the plugin, on both sides.
type confined struct {
	class           Class
	path            string
	was, is         string
	wider, narrower bool
}

// confinement returns the fields of two Sidecars that confine the plugin.
func confinement(before, after *policy.Subject) []confined {
	was, is := before.Sidecar, after.Sidecar
	out := []confined{
		ranked("spec.kernel", string(was.Kernel), string(is.Kernel), string(configs.KernelRequired), string(configs.KernelPreferred), string(configs.KernelOff)),
		ranked("spec.process.network", string(was.Process.Network), string(is.Process.Network), string(configs.NetworkOwn), string(configs.NetworkHost)),
		ranked("spec.process.view", string(was.Process.View), string(is.Process.View), string(configs.ViewOwn), string(configs.ViewHost)),
		ranked("spec.process.unsafeSameUser", fmt.Sprint(was.Process.UnsafeSameUser), fmt.Sprint(is.Process.UnsafeSameUser), "false", "true"),
		changed(ClassConfinement, "spec.process.user", string(was.Process.User), string(is.Process.User)),
		set("spec.process.listen", services(was), services(is)),
		changed(ClassConfinement, "spec.process.env", names(was.Process.Env, is.Process.Env), names(is.Process.Env, was.Process.Env)),
		changed(ClassConfinement, "spec.dns", text(was.DNS), text(is.DNS)),
		changed(ClassConfinement, "spec.upstreamProxy", text(was.UpstreamProxy), text(is.UpstreamProxy)),
		changed(ClassConfinement, "spec.spiffeIDs", text(was.SPIFFEIDs), text(is.SPIFFEIDs)),
	}
	vault := changed(ClassCredential, "spec.vault", vaultText(was.Vault), vaultText(is.Vault))
	vault.wider = is.Vault != nil // another Vault, or another login, is another source of every credential
	return append(append(out, vault), files(before, after)...)
}

// relative returns a text with the folder of the Sidecar's file left out of paths, so that
// two copies of a configuration are alike.
func relative(text string, s *policy.Subject) string {
	dir, err := filepath.Abs(filepath.Dir(s.Path))
	if err != nil {
		return text
	}
	return strings.ReplaceAll(text, dir+string(filepath.Separator), "./")
}

// names returns the variables of which the value is not the same on the other side. Values
// are not printed: they may be secret.
func names(env, other map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if value, ok := other[name]; !ok {
			out = append(out, name)
		} else if value != env[name] {
			out = append(out, fmt.Sprintf("%s (SHA-256 %.4x)", name, sha256.Sum256([]byte(env[name]))))
		}
	}
	return strings.Join(out, ", ")
}

// vaultText returns what a Vault is: its address, its authorities and the login.
func vaultText(v *configs.Vault) string {
	if v == nil {
		return ""
	}
	out := *v
	out.CAFile = ""
	return text(out) + fmt.Sprintf(" authorities %.4x", sha256.Sum256([]byte(v.CA)))
}

// files compares the files that a plugin may use. Without the field it may use all that
// its user may.
func files(before, after *policy.Subject) []confined {
	a, b := before.Sidecar.Process.Files, after.Sidecar.Process.Files
	if a == nil || b == nil {
		f := changed(ClassConfinement, "spec.process.files", text(a), text(b))
		f.wider, f.narrower = b == nil, a == nil
		return []confined{f}
	}
	below := func(paths []string, s *policy.Subject) (out []string) {
		for _, path := range paths {
			out = append(out, relative(path, s))
		}
		return out
	}
	return []confined{
		set("spec.process.files.read", below(a.Read, before), below(b.Read, after)),
		set("spec.process.files.write", below(a.Write, before), below(b.Write, after)),
	}
}

func services(s *configs.Sidecar) (out []string) {
	for _, service := range s.Process.Listen {
		out = append(out, text(service))
	}
	return out
}

func changed(class Class, path, was, is string) confined {
	return confined{class: class, path: path, was: was, is: is}
}

// ranked compares a field whose values are ordered, the strictest first.
func ranked(path, was, is string, values ...string) confined {
	f := changed(ClassConfinement, path, was, is)
	f.wider = slices.Index(values, is) > slices.Index(values, was)
	f.narrower = !f.wider
	return f
}

// set compares a list of which every element allows more.
func set(path string, was, is []string) confined {
	was, is = slices.Sorted(slices.Values(was)), slices.Sorted(slices.Values(is))
	f := changed(ClassConfinement, path, strings.Join(was, ", "), strings.Join(is, ", "))
	f.wider = slices.ContainsFunc(is, func(s string) bool { return !slices.Contains(was, s) })
	f.narrower = !f.wider
	return f
}
