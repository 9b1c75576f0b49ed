// Package upstream dials: it resolves a decided destination, checks each address
// against the decision before a socket is connected to it, applies the rule's TLS
// terms and client certificate, goes through a corporate proxy where one is
// configured, and keeps idle connections apart by rule, policy generation and
// credential.
package upstream
