// Package examples carries the example data centres inside the binary.
package examples

import "embed"

// Story is the data centre of the story, and the variant with too few machines left.
//
//go:embed story story-scarce
var Story embed.FS
