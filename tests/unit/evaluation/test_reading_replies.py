"""More sentences as models write them, a line each, by the options and what they are to be read as."""

from __future__ import annotations

import pytest

from tests.unit.evaluation.test_reading_turns_of_phrase import ASKED
from ultramed_rl.evaluation.reading.choice import read_choice

# `\n` stands for a line's end.
READ = {
    ("care", "A"): r"""
Answer: C. Actually, let me reconsider. The skin is intact, so topical steroid would not help. Answer: A.
Of A and B, A is better.
""",
    ("care", "B"): r"""
The statement that is not correct is B.
Statement B is incorrect, which makes it the answer.
A, C and D are correct statements. Statement B is the incorrect one.
I'd change that to B.
The answer is D. Nope, it's B.
Option B is not recommended, making it the correct answer.
A, C and D are features. B is not a feature, so it is the answer.
B. Oral zinc is not indicated in this case. This is the correct answer.
A. Warm packs: useful. B. Oral zinc: harmful. This is the answer.
I would pick oral zinc over topical steroid.
Creams are not pills, but oral zinc (a kind of salt) is one. Therefore, the most likely choice is (B).
""",
    ("care", "C"): r"""
The answer is B. Let me revise that to C.
Let me revise that to C.
I'll change my answer to C.
The answer is A. I need to correct myself: C.
Answer: B\n\nEdit: C
The answer is B. Upon further review, C is the better option.
The answer is A. Strike that; C.
The answer is B. On second reading, the stem says topical, which makes it C.
The answer is C. Let me double check... Zinc is for diarrhoea, so B is out. I stick with C.
I am changing my answer from B to C.
The answer is B. Make that C.
While not certain, the best choice is C.
C is probably the intended answer.
C seems the way to go.
C looks right.
C seems right to me.
C makes the most sense.
C is your answer.
C is what I'd pick.
C best fits the picture.
C fits best.
C appears most reasonable.
C strikes me as the best option.
C is almost certainly what they want.
C is the obvious choice.
C sounds right.
C has the strongest support.
Not B, C.
B is not it; C is.
Everything but C can be excluded.
All but C are wrong.
None but C fits.
None of A, B or D works, so C.
B? No. C? Yes.
It's C, not B.
All are true EXCEPT: C
The exception here is C.
Therefore, C is not a recommended treatment and is the answer.
Final answer: C\nFinal answer: C\nFinal answer: C\nFinal answer: C
| Answer |\n|---|\n| C |
~~B~~ C
A) Warm packs - Incorrect\nB) Oral zinc - Incorrect\nC) Topical steroid - Correct\nD) Upward rotation - Incorrect
* A: wrong\n* B: wrong\n* C: right\n* D: wrong
**Answer:** (**C**)
```\nC\n```
{'choice': 'C'}
answer: C # topical steroid
The correct answer is **C. Topical steroid**.\n\n**Why not the others?**\n- **A. Warm packs**: burns.\n- **B. Oral zinc**: for diarrhoea.
*Answer:* **C** — topical steroid
A: Incorrect. B: Incorrect. C: Correct. D: Incorrect.
\boxed{\mathrm{C}}
\boxed{\text{Option C}}
\boxed{\text{topical steroid}}
The answer is $\mathbf{C}$.
\boxed{C \text{ (topical steroid)}}
The correct answer is topical steroid.
Answer: Topical steroids
Topical steroid, since zinc is for diarrhoea.
Topical steroid is correct.
Oral zinc is incorrect; topical steroid is correct.
The answer is oral zinc, no wait, topical steroid.
Not oral zinc but topical steroid.
The answer isn't oral zinc; it's topical steroid.
So, topical steroid.
Final answer: "Topical steroid"
I'd choose topical steroid over oral zinc.
La respuesta correcta es la opción C.
Respuesta final: C
La réponse est donc C.
La bonne réponse est l'option C.
Die Antwort ist somit C.
La respuesta correcta es la letra C.
答案不是B，而是C
C - because the others don't treat eczema.
C is correct. Here's why: it calms the skin.
I choose option C: Topical steroid.
Answer C
choice C
Letter C.
The correct answer would therefore have to be option (C).
The answer that best fits is C.
Solution: C
The best answer among the given options is C.
Of these, C is best.
Between B and C, C is better.
C is better than B.
C beats B.
B or C? C.
Is it B? No. Is it C? Yes.
Which one? C.
The answer must be C, since if it were B, zinc would be needed.
The answer is C unless the skin is broken.
Although B could work, C works better.
Both B and C are reasonable, but C is preferred.
C is preferred over B.
C would help the most.
C for sure.
C without a doubt.
The answer is B, or rather C.
""",
    ("care", "D"): r"""
The answer is B. Ignore that, the answer is D.
The answer is B.\n\nCorrected answer: D
The answer is B. Let me change that: D.
Since the question asks for the exception, the answer is D.
Every option except D lowers the risk, so D is the answer.
D seems to be what they're looking for.
D looks like the best of the four.
D appears to be the safest option.
D remains the most sensible choice.
D would work best here.
D feels right.
D is preferable.
B seems reasonable, but D is better.
Neither A nor B. D.
Could it be A? No. D? Yes.
~~A~~ **D**
A: ✗\nB: ✗\nC: ✗\nD: ✓
A) Warm packs: incorrect\nB) Oral zinc: incorrect\nC) Topical steroid: incorrect\nD) Upward rotation: correct
**Verdict: D. Upward rotation**
$$\boxed{\text{(D) Upward rotation}}$$
Thus, upward rotation.
It must be upward rotation.
Not topical steroid but upward rotation.
I'd answer upward rotation.
Upward rotation it is.
While B helps a little, D helps the most.
The answer is clearly D and nothing else.
La réponse est évidemment D.
Die Antwort ist eindeutig D.
La respuesta es claramente D.
""",
    ("care", "none"): r"""
The answer is B. I retract that.
C is a reasonable distractor.
C seems far-fetched.
There's no way it is C.
I cannot endorse C.
Final answer: I'm unable to choose.
I lean to B. Final answer: undecided.
The answer is C. Final Answer: Unable to determine.
The answer is C. Final answer: not enough information to choose.
The answer is C. Final Answer: It depends.
The best answer is C.\nFinal Answer: the question cannot be answered as posed.
As an AI model, I cannot give medical advice.
The answer is C.\nFinal answer: skip
The answer is C.\nFinal answer: ?
The answer is C.\nFinal answer: I must decline to answer.
The answer is C.\nFinal answer: the correct option is missing.
This is due to C. perfringens.
Amphotericin B is the best choice.
The most likely deficiency is of vitamin D.
Coenzyme A is needed.
Cyclosporin A is the answer.
Class C drugs are avoided.
I would give her amphotericin B.
\boxed{}
La respuesta correcta no es C.
Next, C.
Moving on to C.
That was the case for C.
The same is true of C.
On to C.
This also applies to C.
We have already discussed C.
Let me think about C.
That is how we treated the patient in C.
This was true for C.
D is rarely used.
It can hardly be D.
Final answer: cannot say.
The answer is B. Final answer: not sure.
The best guess is B. Final answer: I will not answer this question.
She takes cyclosporin A.
We tested for serotype B.
It should be treated with amphotericin B.
Hemoglobin C is the cause.
So she has hepatitis C.
The patient in case C was treated.
Her antithrombin C is low.
This is also seen in D.
It was the same for B.
This concludes the discussion of B.
A simple cream would help.
""",
    ("culture", "B"): r"""
The answer is E. faecalis.
The answer is B (E. faecalis), not C. difficile.
It is B: E. faecalis.
""",
    ("culture", "E"): r"""
So, C. difficile it is.
""",
    ("ten", "I"): r"""
The answer is (I).\nFinal Answer: The final answer is $\boxed{I}$
""",
    ("ten", "G"): r"""
The answer is G, not penicillin G.
""",
    ("ten", "none"): r"""
Penicillin G is the drug of choice.
""",
    ("pubmed", "A"): r"""
Yes, it does.
The answer is a clear yes.
A definite yes.
Conclusion: yes
There is no doubt that the answer is yes.
I would lean towards yes.
The answer would be a cautious yes.
I'd answer yes.
""",
    ("pubmed", "B"): r"""
No, they do not.
The answer is a resounding no.
It's a no.
Long story short: no.
So the answer has to be 'no'.
My conclusion: no.
It must be no.
I would answer no, because the groups did not differ.
""",
    ("pubmed", "C"): r"""
The answer is neither yes nor no, so maybe.
The answer is yes... or rather, maybe.
I would answer maybe.
Decision: maybe
The verdict: maybe.
Not yes but maybe.
""",
    ("pubmed", "none"): r"""
I can't say yes or no.
""",
}


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        (options, line, expected)
        for (options, expected), lines in READ.items()
        for line in lines.strip().splitlines()
    ],
)
def test_replies(options: str, text: str, expected: str) -> None:
    reading = read_choice(text.replace("\\n", "\n"), ASKED[options])
    assert (reading.given or (reading.problem,)) == (expected,)
