// Package catalog describes the plugins of a governance repository for those who choose
// and run them: what a plugin is for, what it may do, with which platform it works, who
// supports it and for how long, and whether a signed grant certifies it.
//
// [Build] computes the catalogue from files and signatures, and [Catalog.Files] renders it
// as JSON and as static pages without scripts. The package reads no clock, and writes no
// file.
package catalog
