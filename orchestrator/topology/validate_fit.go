package topology

import "fmt"

// fitting reports workloads that do not fit the machine they are said to run on, and those that fit no
// machine at all, whatever else runs there.
func (v *validator) fitting() {
	ix := v.t.index()
	machines := v.order[KindMachine]
	for _, name := range v.order[KindWorkload] {
		w := ix.workloads[name]
		spec := w.workload.Spec
		if home := ix.machines[spec.Home]; home != nil && spec.RunsOn != Virtual {
			for _, test := range hardwareTests {
				if !test.ok(w, home) {
					v.fail(KindWorkload, name, "spec.home", fmt.Sprintf("it does not fit its home %s: %s: %s", spec.Home, test.constraint, test.reason(w, home)), "")
				}
			}
			continue
		}
		bare, constraint := firstBarrier(ix, w, machines, physicalTests)
		if bare == "" {
			continue
		}
		// The reserve is a matter of the runbook's policy: the check is with none, the most favourable.
		virtual, virtualConstraint := firstBarrier(ix, w, machines, virtualTests(0))
		if virtual == "" {
			continue
		}
		if spec.RunsOn == Virtual {
			bare, constraint = virtual, virtualConstraint
		}
		v.fail(KindWorkload, name, "spec", fmt.Sprintf("fits no machine: %s: %s", constraint, bare), "")
	}
}

// firstBarrier narrows the machines down test by test and explains the test that leaves none, by the largest
// machine that had come so far. It returns "" as soon as one machine passes all.
func firstBarrier(ix *index, w *workloadFacts, machines []string, tests []fitTest) (reason string, c Constraint) {
	furthest := -1
	var last *machineFacts
	for _, name := range machines {
		m := ix.machines[name]
		passed := 0
		for passed < len(tests) && tests[passed].ok(w, m) {
			passed++
		}
		if passed == len(tests) {
			return "", ""
		}
		if passed > furthest || passed == furthest && larger(m, last) {
			furthest, last = passed, m
		}
	}
	if last == nil {
		return "there is none", ConstraintUnknown
	}
	return fmt.Sprintf("%s (%s comes closest)", tests[furthest].reason(w, last), last.machine.Meta.Name), tests[furthest].constraint
}

func larger(a, b *machineFacts) bool {
	x, y := a.hardware.Spec, b.hardware.Spec
	return x.MemoryMiB > y.MemoryMiB || x.MemoryMiB == y.MemoryMiB && x.CPUs > y.CPUs
}
