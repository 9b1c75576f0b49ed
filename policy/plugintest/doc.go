// Package plugintest runs PluginTests: files beside the grants that state which requests
// a policy must allow and deny, and what it must never allow.
//
// A request is decided by [authz.Snapshot.Decide] of the policy that the test names, as a
// sidecar decides it without usage and without revocations. A host that is an address,
// and an address that an expectation states, are judged by [authz.Decision.CheckAddress]
// too, as when the sidecar connects. The forms never and atMost hold for every request and
// are proved by the package prove.
package plugintest
