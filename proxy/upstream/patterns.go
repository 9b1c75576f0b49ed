package upstream

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
)

// patternsOf returns what the values of an injected credential look like in an
// answer, and in the names of its headers, which have no case; nil for nothing
// that could be found.
func patternsOf(slots []authz.Injection) (values, names *scrub.Patterns) {
	var texts, lowered, public, loweredPublic []string
	for _, slot := range slots {
		for _, text := range slot.NotSecret() {
			public, loweredPublic = append(public, text), append(loweredPublic, strings.ToLower(text))
		}
		for _, text := range secretTexts(slot) {
			texts, lowered = append(texts, text), append(lowered, strings.ToLower(text))
		}
	}
	return scrub.NewBeside(public, texts...), scrub.NewBeside(loweredPublic, lowered...)
}

// secretTexts returns all that is secret about an injected credential, and what is
// inside a header's value behind its scheme.
func secretTexts(slot authz.Injection) []string {
	var texts []string
	for _, secret := range slot.Secrets() {
		texts = append(texts, secret.Reveal())
	}
	if slot.Kind != authz.InjectSigV4 {
		texts = append(texts, slices.DeleteFunc(credentialTexts(slot.Value.Reveal()), func(text string) bool {
			return slices.ContainsFunc(slot.NotSecret(), func(public string) bool { return strings.Contains(public, text) })
		})...)
	}
	// A search for the token also finds it behind its scheme.
	return slices.DeleteFunc(texts, func(text string) bool {
		scheme, rest, _ := strings.Cut(text, " ")
		return isScheme(scheme) && len(rest) > len(scheme) && slices.Contains(texts, rest)
	})
}

// isScheme reports whether a word is known to say how a credential is used: it is
// no part of one.
func isScheme(word string) bool {
	return slices.ContainsFunc([]string{"Basic", "Bearer", "Token", "Bot"}, func(scheme string) bool { return strings.EqualFold(word, scheme) })
}

// credentialTexts returns a value, what follows its scheme (Bearer and the like), and
// for Basic the pair and the password in it.
func credentialTexts(value string) []string {
	texts := []string{value}
	scheme, rest, ok := strings.Cut(value, " ")
	if !ok {
		return texts
	}
	texts = append(texts, rest)
	if strings.EqualFold(scheme, "Basic") {
		if pair, err := base64.StdEncoding.DecodeString(rest); err == nil {
			_, password, _ := strings.Cut(string(pair), ":")
			texts = append(texts, string(pair), password)
		}
	}
	return texts
}
