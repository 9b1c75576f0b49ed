package sidecar

import (
	"reflect"
	"strings"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
)

// restartPending returns the fields of the Sidecar that were loaded and take
// effect at a restart, as in listen.proxy.
func (c *PolicyControl) restartPending() []string {
	return restartFields(c.running, c.config.Load().Sidecar)
}

// restartFields returns the fields by which a loaded Sidecar differs from the one
// that the sidecar was started with, less those that a reload puts in force.
func restartFields(running, loaded configs.Sidecar) []string {
	return differing("", reflect.ValueOf(withoutPolicy(running)), reflect.ValueOf(withoutPolicy(loaded)))
}

// withoutPolicy leaves out what a reload does put into effect.
func withoutPolicy(s configs.Sidecar) configs.Sidecar {
	if s.Vault != nil {
		v := *s.Vault
		v.CA = "" // its file is read for each connection
		s.Vault = &v
	}
	s.Grants, s.Guardrails, s.Mode, s.ObserveUntil, s.OnBadReload, s.LogLevel = nil, nil, "", time.Time{}, "", ""
	return s
}

// differing returns the paths of the fields that differ, of structs field by
// field. Both values are of one type.
func differing(path string, a, b reflect.Value) []string {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	if a.Kind() != reflect.Struct || a.Type().PkgPath() != reflect.TypeFor[configs.Sidecar]().PkgPath() || a.Type() == reflect.TypeFor[configs.Address]() {
		if reflect.DeepEqual(a.Interface(), b.Interface()) {
			return nil
		}
		return []string{path}
	}
	var out []string
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if name == "-" { // the content of a file that another field names
			name = strings.ToLower(a.Type().Field(i).Name) + "File"
		}
		if path != "" {
			name = path + "." + name
		}
		for _, field := range differing(name, a.Field(i), b.Field(i)) {
			if len(out) == 0 || out[len(out)-1] != field {
				out = append(out, field)
			}
		}
	}
	return out
}

// pendingText describes which fields wait for a restart; "" for none.
func pendingText(fields []string) string {
	if len(fields) == 0 {
		return ""
	}
	return "restart pending: " + strings.Join(fields, ", ") + " (takes effect at a restart)"
}
