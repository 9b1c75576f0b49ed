package authz

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const canary = "hunter2-canary"

// TestSecretIsNotPrinted looks for a canary in everything that prints what may
// hold a secret.
func TestSecretIsNotPrinted(t *testing.T) {
	w := newWorld(t, input(withKey(forecast())))
	w.source.credential = apiKey(canary)
	a := w.admit(t, get(t, forecastURL))
	if a.Injection.Value.Reveal() != "Bearer "+canary {
		t.Fatal("there is no canary to look for")
	}
	type holder struct {
		Shown  Secret
		hidden Secret
		Inside struct{ s *Secret }
	}
	secret := NewSecret(canary)
	h := holder{Shown: secret, hidden: secret}
	h.Inside.s = &secret
	for name, value := range map[string]any{
		"secret": secret, "pointer": &secret, "holder": h, "pointer to holder": &h, "slice": []Secret{secret}, "map": map[string]Secret{"a": secret},
		"key": map[Secret]int{secret: 1}, "credential": w.source.credential, "injection": a.Injection, "admission": a, "decision": a.Decision,
		"spec": a.Decision.rule.credential, "rendering": a.Decision.rule.credential.rendered.Load(), "records": w.recorder.all(), "source": w.source,
		"error": fmt.Errorf("wrapped: %w", errors.New(fmt.Sprint(secret))),
	} {
		var printed []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%c", "%U", "%e", "%o", "%b", "%p", "%T", "%10.3v", "%!"} {
			printed = append(printed, fmt.Sprintf(verb, value))
		}
		if data, err := json.Marshal(value); err == nil {
			printed = append(printed, string(data))
		}
		if data, err := xml.Marshal(value); err == nil {
			printed = append(printed, string(data))
		}
		var logged strings.Builder
		slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "value", value)
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "value", value)
		printed = append(printed, logged.String(), cmp.Diff(value, nil, cmp.Exporter(func(reflect.Type) bool { return true })))
		var dumped strings.Builder
		dump(&dumped, reflect.ValueOf(value), map[uintptr]bool{}, 0)
		printed = append(printed, dumped.String())
		for _, text := range printed {
			// Also as bytes in hexadecimal, and as numbers.
			for _, form := range []string{canary, fmt.Sprintf("%x", canary), strings.Trim(fmt.Sprint([]byte(canary)), "[]")} {
				if strings.Contains(text, form) {
					t.Errorf("%s shows itself as %.300s", name, text)
				}
			}
		}
	}
}

// dump prints what reflection can reach, through every pointer, interface and
// unexported field, as debuggers' dumpers do.
func dump(out *strings.Builder, v reflect.Value, seen map[uintptr]bool, depth int) {
	if depth > 20 {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && !seen[v.Pointer()] {
			seen[v.Pointer()] = true
			dump(out, v.Elem(), seen, depth+1)
		}
	case reflect.Interface:
		dump(out, v.Elem(), seen, depth+1)
	case reflect.Struct:
		for _, field := range v.Fields() {
			dump(out, field, seen, depth+1)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			dump(out, v.Index(i), seen, depth+1)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			dump(out, key, seen, depth+1)
			dump(out, v.MapIndex(key), seen, depth+1)
		}
	case reflect.Invalid:
	default:
		fmt.Fprintln(out, v)
	}
}

func TestSecret(t *testing.T) {
	var zero Secret
	if zero.Reveal() != "" || !zero.Empty() || !zero.Equal(NewSecret("")) || zero.String() != redacted {
		t.Error("the zero Secret is not empty")
	}
	a, b := NewSecret("a"), NewSecret("a")
	if a == b || a.Empty() || !a.Equal(b) || a.Equal(NewSecret("b")) || a.Equal(zero) || a.Reveal() != "a" {
		t.Error("secrets do not compare")
	}
	if diff := cmp.Diff(Credential{Fields: map[string]Secret{"k": a}}, Credential{Fields: map[string]Secret{"k": b}}); diff != "" {
		t.Error(diff)
	}
	if a.GoString() != redacted {
		t.Error("a secret shows itself as Go")
	}
	if text, err := a.MarshalText(); err != nil || string(text) != redacted {
		t.Errorf("%s, %v", text, err)
	}
}
