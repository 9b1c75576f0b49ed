package sidecar

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/atomicfile"
	"github.com/chaperone-proxy/chaperone/proxy/placeholder"
)

// placeholdersFile has the placeholders for the program that starts the plugin, when
// the sidecar does not: NAME=VALUE lines, as a service manager reads them.
const placeholdersFile = "placeholders.env"

// placeholders are the values of placeholders: random, made once for a sidecar's
// life. They are not secrets, but they are not logged: with one, a program could
// send to an upstream what is refused here.
type placeholders struct {
	file string // "" keeps them in memory

	mu   sync.Mutex
	made map[authz.Placeholder]authz.Secret
	now  []authz.Placeholder // those of the grants that are loaded
	kept map[string]string   // by variable: what the file held before
	all  atomic.Pointer[[]placeholder.Placeholder]
}

// makePlaceholders makes the values of placeholders: in a file, when somebody else
// starts the plugin.
func (s *Sidecar) makePlaceholders(*configs.Sidecar) (err error) {
	file := ""
	if s.cfg.External {
		file = s.policy.state.path(placeholdersFile)
	}
	s.plugin.placeholders, err = newPlaceholders(file)
	return err
}

// newPlaceholders returns the placeholders that the file holds already, so that a
// plugin that keeps running can still use them.
func newPlaceholders(file string) (*placeholders, error) {
	p := &placeholders{file: file, made: map[authz.Placeholder]authz.Secret{}, kept: map[string]string{}}
	if file == "" {
		return p, nil
	}
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read placeholders: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if env, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			p.kept[env] = value
		}
	}
	return p, nil
}

// follow makes the missing placeholders of a plugin's grants, and replaces the file if
// there is one. It forgets no placeholder, since the plugin may have it.
func (p *placeholders) follow(plugin string, grants []authz.Grant) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []placeholder.Placeholder
	if known := p.all.Load(); known != nil {
		all = slices.Clone(*known)
	}
	before := len(all)
	p.now = placeholdersOf(plugin, grants)
	for _, wanted := range p.now {
		if _, ok := p.made[wanted]; ok {
			continue
		}
		value, err := p.value(wanted)
		if err != nil {
			return fmt.Errorf("make placeholder of %s/%s: %w", wanted.Grant, wanted.Credential, err)
		}
		p.made[wanted] = authz.NewSecret(value)
		all = append(all, placeholder.Placeholder{Grant: wanted.Grant, Credential: wanted.Credential, Value: p.made[wanted]})
	}
	if len(all) == before {
		return nil
	}
	p.all.Store(&all)
	return p.write()
}

// placeholdersOf returns those of a plugin's grants, in their order.
func placeholdersOf(plugin string, grants []authz.Grant) []authz.Placeholder {
	var out []authz.Placeholder
	for _, g := range grants {
		for _, c := range g.Credentials {
			if c.Placeholder != nil && g.Plugin == plugin {
				out = append(out, authz.Placeholder{Grant: g.Name, Credential: c.Name, Env: c.Placeholder.Env, Like: c.Placeholder.Like})
			}
		}
	}
	return out
}

// value returns what the file held, if that is one of these, or a new one.
func (p *placeholders) value(wanted authz.Placeholder) (string, error) {
	before, random, after, err := wanted.Parts()
	if err != nil {
		return "", err
	}
	kept := p.kept[wanted.Env]
	if len(kept) == len(before)+random+len(after) && strings.HasPrefix(kept, before) && strings.HasSuffix(kept, after) {
		return kept, nil
	}
	return before + randomText(random) + after, nil
}

// randomText returns n random letters and digits.
func randomText(n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	out := make([]byte, 0, n)
	for len(out) < n {
		var raw [64]byte
		_, _ = rand.Read(raw[:]) // never fails
		for _, b := range raw {
			if int(b) < 256/len(letters)*len(letters) && len(out) < n { // each as likely as the others
				out = append(out, letters[int(b)%len(letters)])
			}
		}
	}
	return string(out)
}

// write replaces the file. The caller holds mu.
func (p *placeholders) write() error {
	if p.file == "" {
		return nil
	}
	var text strings.Builder
	env := p.variables()
	for _, name := range slices.Sorted(maps.Keys(env)) {
		text.WriteString(name + "=" + env[name] + "\n")
	}
	if err := atomicfile.Write(p.file, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write placeholders: %w", err)
	}
	return nil
}

func (p *placeholders) variables() map[string]string {
	out := map[string]string{}
	for _, placeholder := range p.now {
		out[placeholder.Env] = p.made[placeholder].Reveal()
	}
	return out
}

// environment returns the variables of a plugin that is started now.
func (p *placeholders) environment() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.variables()
}

// current returns all there are, without waiting for anything.
func (p *placeholders) current() []placeholder.Placeholder {
	if all := p.all.Load(); all != nil {
		return *all
	}
	return nil
}

// redactingRecorder is an authz.Recorder that replaces placeholders in paths and
// queries.
type redactingRecorder struct {
	next authz.BatchRecorder
	all  func() []placeholder.Placeholder
}

// Record passes a record on, with [placeholder] instead of a placeholder.
func (r redactingRecorder) Record(record *authz.Record) error {
	return r.next.Record(r.redact(record))
}

// RecordAll is Record for several (authz.BatchRecorder).
func (r redactingRecorder) RecordAll(records []*authz.Record) error {
	for i, record := range records {
		records[i] = r.redact(record)
	}
	return r.next.RecordAll(records)
}

func (r redactingRecorder) redact(record *authz.Record) *authz.Record {
	for _, p := range r.all() {
		value := p.Value.Reveal()
		if !strings.Contains(record.Path, value) && !strings.Contains(record.Query, value) {
			continue
		}
		redacted := *record
		redacted.Path = strings.ReplaceAll(record.Path, value, "[placeholder]")
		redacted.Query = strings.ReplaceAll(record.Query, value, "[placeholder]")
		record = &redacted
	}
	return record
}
