// Package placeholder finds the placeholders of credentials in the requests of a
// plugin. In the slot of its credential a placeholder is replaced; anywhere else the
// request is refused.
package placeholder
