package apply

import "fmt"

// The result codes: statemachine.Result.Value of an entry.
const (
	// ResultApplied: the entry took effect.
	ResultApplied uint64 = 1
	// ResultDuplicate: a repetition of an entry of this tenure that was already
	// decided. For a Write it means applied: a Write that is refused does not
	// consume its number. For a Split it may have been refused; look at the
	// range's state.
	ResultDuplicate uint64 = 2
	// ResultGap: an earlier number of this tenure is missing. Nothing happened;
	// propose again from the gap on.
	ResultGap uint64 = 3
	// ResultWrongTenure: another tenure is in force. Nothing happened.
	ResultWrongTenure uint64 = 4
	// ResultEpochMismatch: evaluated at another span epoch. Nothing happened. A
	// Write does not consume its number, so that nothing that was evaluated on
	// top of it can be applied: acquire anew. Other kinds consume theirs.
	ResultEpochMismatch uint64 = 5
	// ResultRefused: refused, Data says why. Numbers as for EpochMismatch.
	ResultRefused uint64 = 6
	// ResultPoisoned: this replica must not go on. The other replicas decided
	// the entry; this one cannot tell how.
	ResultPoisoned uint64 = 7
	// ResultHalted: this replica decides nothing until its next start. As for
	// ResultPoisoned the outcome is unknown here.
	ResultHalted uint64 = 8
)

// ResultName names a result code for people.
func ResultName(code uint64) string {
	names := [...]string{
		ResultApplied:       "applied",
		ResultDuplicate:     "duplicate",
		ResultGap:           "gap",
		ResultWrongTenure:   "wrong-tenure",
		ResultEpochMismatch: "epoch-mismatch",
		ResultRefused:       "refused",
		ResultPoisoned:      "poisoned",
		ResultHalted:        "halted",
	}
	if code == 0 || code >= uint64(len(names)) {
		return fmt.Sprintf("result-%d", code)
	}
	return names[code]
}
